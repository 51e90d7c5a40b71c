"""Arithmetic that stays finite, with a gradient that lives, whatever a network puts out."""

from torch import Tensor


def smooth_bound(x: Tensor, low: float = -10.0, high: float = 10.0, span: float = 10.0) -> Tensor:
    """`x`, float32, kept above `low - span` and below `high + span`.

    The identity from `low` to `high`; beyond, it nears the bound as 1 / distance, with a continuous derivative. That
    derivative falls as 1 / distance^2, so it is no zero where that of tanh or softplus has long rounded to it, and a
    log-variance that strayed far comes back. The defaults suit log-variances: exp is within e^-20 to e^20.
    """
    x = x.float()
    inside = x.clamp(low, high)
    beyond = x - inside
    # span * d / (span + |d|), in the form whose gradient does not cancel
    return inside + beyond.sign() * (span - span**2 / (span + beyond.abs()))
