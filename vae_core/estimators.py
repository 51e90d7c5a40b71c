"""Gradients through draws of categorical latents: pure functions of tensors, which know no model.

Shapes: S draws, B samples, V variables of K categories. Log-probabilities are [B, V, K] and normalised; draws are
codes, int64 [S, B, V], or vectors [S, B, V, K]. A surrogate is a number [B] whose gradient is the estimator's gradient
of what is minimised; its value means nothing.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

RESOLUTION = 2.0**-24  # of a uniform float32; less probable categories are never drawn


def standard_gumbel(uniform: Tensor) -> Tensor:
    """Gumbel(0, 1) noise of the same shape for `uniform` in [0, 1); finite at 0 too.

    Source: Jang et al., arXiv:1611.01144, section 2.1.
    """
    return -torch.log(-torch.log(uniform.float().clamp_min(0.5 * RESOLUTION)))


def gumbel_softmax(log_probs: Tensor, gumbel: Tensor, temperature: Tensor | float) -> Tensor:
    """Relaxed one-hot draws [S, B, V, K]: each sums to 1, and is one-hot in the limit of temperature 0.

    Args:
        log_probs: [B, V, K].
        gumbel: [S, B, V, K] from `standard_gumbel`.
        temperature: above 0.

    Source: Jang et al., arXiv:1611.01144, equation 2.
    """
    return F.softmax((log_probs.float() + gumbel) / temperature, dim=-1)


def gumbel_max(log_probs: Tensor, gumbel: Tensor) -> Tensor:
    """Exact draws, codes int64 [S, B, V]: the largest of each variable's perturbed log-probabilities.

    Source: Jang et al., arXiv:1611.01144, equation 1.
    """
    return (log_probs.float() + gumbel).argmax(-1)


def straight_through(relaxed: Tensor) -> Tensor:
    """The one-hot vectors [..., K] of the largest entries, with the gradient of `relaxed`.

    Source: Jang et al., arXiv:1611.01144, section 2.2.
    """
    return one_hot(relaxed.argmax(-1), relaxed.shape[-1]) + (relaxed - relaxed.detach())


def one_hot(codes: Tensor, categories: int) -> Tensor:
    """float32 [..., K] for codes int64 [...]."""
    return (codes[..., None] == torch.arange(categories, device=codes.device)).float()


def uniform_codes(uniform: Tensor, categories: int) -> Tensor:
    """Draws from the uniform distribution over the categories, int64, for `uniform` in [0, 1) of the same shape."""
    return (uniform * categories).long()  # a float32 below 1 times n rounds to less than n


@torch.no_grad()
def inverse_cdf(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Exact draws, codes int64 [S, B, V], for `uniform` [S, B, V] in [0, 1).

    No category less probable than 2^-24 is drawn, however the cumulative sum is rounded: such a draw would enter an
    importance-weighted mean with an enormous weight.
    """
    probs = log_probs.float().exp()
    below = probs.cumsum(-1).masked_fill(probs < RESOLUTION, -1.0).cummax(-1).values
    at = uniform.permute(1, 2, 0) * below[..., -1:]  # float32 below 1, so less than the total even when rounded
    codes: Tensor = torch.searchsorted(below.contiguous(), at.contiguous(), right=True)
    return codes.permute(2, 0, 1)


def log_prob(log_probs: Tensor, codes: Tensor) -> Tensor:
    """log q of codes [S, B, V] in nats, [S, B]: the sum over the variables."""
    each = log_probs.expand(*codes.shape, log_probs.shape[-1]).gather(-1, codes[..., None])
    return each.squeeze(-1).sum(-1)


def score(signal: Tensor, log_q: Tensor) -> Tensor:
    """Surrogate [B] of the score function estimator: the mean over the draws of signal x grad log q.

    Args:
        signal: [S, B] what is minimised, less any baseline that does not depend on the draw itself.
        log_q: [S, B] of the draws.

    Source: Williams, Machine Learning 8 (1992); Mnih & Gregor, arXiv:1402.0030, section 2.2.
    """
    return (signal.detach() * log_q).mean(0)


def leave_one_out_mean(values: Tensor) -> Tensor:
    """[S, B] the mean of the other draws' values, for each draw of `values` [S, B], S at least 2.

    Source, as a baseline: Kool et al., Buy 4 REINFORCE samples, get a baseline for free!, ICLR workshop 2019.
    """
    return (values.sum(0) - values) / (len(values) - 1)


def importance_bound(log_weight: Tensor) -> Tensor:
    """log of the mean weight, [B], for log-weights [S, B]: a lower bound of log p(x) in expectation.

    Source: Burda et al., arXiv:1509.00519, equation 8.
    """
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def leave_one_out_bound(log_weight: Tensor, mean: Literal["geometric", "arithmetic"] = "geometric") -> Tensor:
    """[S, B] the importance-weighted bound with each draw's weight replaced by a mean of the others' weights.

    Source: Mnih & Rezende, arXiv:1602.06725, section 2.5; geometric is what its experiments use.
    """
    draws = len(log_weight)
    own = torch.eye(draws, dtype=torch.bool, device=log_weight.device)[..., None]
    whole = log_weight.expand(draws, *log_weight.shape)
    if mean == "geometric":
        instead = leave_one_out_mean(log_weight)
    else:
        instead = whole.masked_fill(own, -math.inf).logsumexp(1) - math.log(draws - 1)
    return torch.where(own, instead[:, None], whole).logsumexp(1) - math.log(draws)


def vimco(log_weight: Tensor, log_q: Tensor, mean: Literal["geometric", "arithmetic"] = "geometric") -> Tensor:
    """Surrogate [B] of minus the importance-weighted bound.

    Args:
        log_weight: [S, B] log p(x, z) - log q(z | x), differentiable in both.
        log_q: [S, B] of the draws.
        mean: of the other draws' weights, in the baseline.

    Source: Mnih & Rezende, arXiv:1602.06725, section 2.5.
    """
    bound = importance_bound(log_weight)
    signal = (bound - leave_one_out_bound(log_weight, mean)).detach()
    return -(signal * log_q).sum(0) - bound


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value`, to the bit, with the gradient of `surrogate`."""
    return value.detach() + (surrogate - surrogate.detach())
