"""The rate split into mutual information, total correlation and dimension-wise KL.

Source: Chen et al., arXiv:1802.04942, equation 2, with minibatch-weighted sampling (section 4) that takes the rows of
the global batch for the whole data set: q(z) is estimated by the mean of q(z | x_j) over the batch of M rows. So the
estimate of the mutual information is at most log M, and that of the total correlation leans on the batch size too.
The gradient is that of any other data set size, which enters as a constant.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.distributed import all_gather_rows
from vae_core.models.base import Inputs
from vae_core.models.gaussian import GaussianOutput
from vae_core.normal import LOG_2PI, standard_log_prob


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Estimates of the three parts of the rate for each sample, [B] nats; their sum is log q(z | x) - log p(z)."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor

    def parts(self) -> dict[str, Tensor]:
        return {
            "mutual_information_nats": self.mutual_information,
            "total_correlation_nats": self.total_correlation,
            "dimension_kl_nats": self.dimension_kl,
        }


def decomposition(output: GaussianOutput, inputs: Inputs) -> Decomposition:
    """The split at the first draw of each sample.

    Memory grows with rows of this rank x rows of the global batch x latent dimensions.
    """
    q, z = output.posterior, output.latent[0]
    log_q_given_x = q.log_prob(z)
    each = _log_density_under_all(z, all_gather_rows(q.mean), all_gather_rows(q.log_var))  # [B, M, L]
    row_weight = all_gather_rows(inputs.row_weight)
    absent = torch.where(row_weight > 0, 0.0, -math.inf)[None, :]
    log_rows = math.log(inputs.global_rows)
    log_q = (each.sum(2) + absent).logsumexp(1) - log_rows
    log_q_each = ((each + absent[..., None]).logsumexp(1) - log_rows).sum(1)
    log_p = standard_log_prob(z) if output.prior is None else output.prior.log_prob(z)
    return Decomposition(log_q_given_x - log_q, log_q - log_q_each, log_q_each - log_p)


def _log_density_under_all(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log q(z_i | x_j) of each dimension, [B, M, L]."""
    squared = (z[:, None] - mean[None]).square() * torch.exp(-log_var)[None]
    return -0.5 * (squared + log_var[None] + LOG_2PI)
