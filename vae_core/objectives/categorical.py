"""Objectives of the model with categorical latents: surrogates with the gradient of the chosen estimator."""

import math
from typing import assert_never

from torch import Tensor

from vae_core.config import CategoricalConfig
from vae_core.estimators import importance_bound, leave_one_out_mean, score, vimco, with_gradient_of
from vae_core.models.base import Inputs
from vae_core.models.categorical import CategoricalOutput
from vae_core.objectives.terms import Terms, elbo_parts


def categorical_kl(log_probs: Tensor) -> Tensor:
    """KL(q || uniform) in nats, [B], of log-probabilities [B, V, K]: summed over the variables.

    Source: Jang et al., arXiv:1611.01144, section 3.1, with the entropy in closed form.
    """
    log_probs = log_probs.float()
    return (log_probs.exp() * (log_probs + math.log(log_probs.shape[-1]))).flatten(1).sum(1)


def categorical_terms(config: CategoricalConfig, output: CategoricalOutput, inputs: Inputs) -> Terms:
    """Distortion + beta x rate, minus the importance-weighted bound (`vimco`), or both phases of `wake_sleep`.

    The value of the loss is that of what is minimised; where it is no function that autograd can follow, its gradient
    is the estimator's. `distortion_nats` is a mean over the draws, `rate_nats` is exact. While `gumbel` trains, the
    draws are relaxed and `neg_elbo_nats` bounds nothing; in evaluation they are exact.
    """
    distortion, rate = output.distortion.mean(0), categorical_kl(output.posterior)
    parts = elbo_parts(distortion, rate)
    weighted = distortion + inputs.weights["beta"] * rate
    match config.estimator:
        case "gumbel" | "straight_through":
            return Terms(weighted, parts)
        case "reinforce":
            return Terms(with_gradient_of(weighted, reinforce(output, inputs)), parts)
        case "rloo":
            return Terms(with_gradient_of(weighted, rloo(output, inputs)), parts)
        case "vimco":
            return vimco_terms(output, parts)
        case "wake_sleep":
            return wake_sleep_terms(output, parts)
        case other:
            assert_never(other)


def reinforce(output: CategoricalOutput, inputs: Inputs) -> Tensor:
    """Surrogate [B] of the score function with a learned baseline, which it trains along.

    The encoder's gradient is scaled as a whole, rate included, so its direction is unbiased. The baseline follows the
    gradient of half its squared error under the same scale.

    Source: Mnih & Gregor, arXiv:1402.0030, algorithm 1.
    """
    log_q, expected = output.log_q, output.expected
    assert log_q is not None
    assert expected is not None
    signal = expected.scale * (output.cost(inputs.weights["beta"]) - expected.cost).detach()
    return output.distortion.mean(0) + score(signal, log_q) - signal.mean(0) * expected.cost


def rloo(output: CategoricalOutput, inputs: Inputs) -> Tensor:
    """Surrogate [B] of the score function, each draw judged against the mean of the others.

    Source: Kool et al., Buy 4 REINFORCE samples, get a baseline for free!, ICLR workshop 2019.
    """
    assert output.log_q is not None
    cost = output.cost(inputs.weights["beta"])
    return output.distortion.mean(0) + score(cost - leave_one_out_mean(cost), output.log_q)


def vimco_terms(output: CategoricalOutput, parts: dict[str, Tensor]) -> Terms:
    """Minus the importance-weighted bound. Source: Mnih & Rezende, arXiv:1602.06725."""
    assert output.log_q is not None
    log_weight = -output.cost(1.0)
    bound = -importance_bound(log_weight)
    return Terms(with_gradient_of(bound, vimco(log_weight, output.log_q)), {**parts, "neg_iwae_bound_nats": bound})


def wake_sleep_terms(output: CategoricalOutput, parts: dict[str, Tensor]) -> Terms:
    """-log p(x, z) for z ~ q(z | x), which trains the decoder, and -log q(z | x) for (z, x) ~ p, the encoder.

    Source: Hinton et al., Science 268 (1995).
    """
    assert output.dream_log_q is not None
    _, variables, categories = output.posterior.shape
    wake = output.distortion.mean(0) + variables * math.log(categories)
    sleep = -output.dream_log_q.mean(0)
    return Terms(wake + sleep, {**parts, "sleep_nats": sleep})
