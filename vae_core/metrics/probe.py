"""What a straight line can read from a representation: a linear classifier on frozen features."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features, float64.

    Attributes:
        mean: [D] of the rows it was fitted on.
        scale: [D] their standard deviations; 1 where a feature does not vary.
        weight: [K, D].
        bias: [K].
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities: [N, D] -> [N, K] float64."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of the rows whose likeliest class is the label, 0 to 1: features [N, D], labels int64 [N]."""
        return float((self.logits(features).argmax(1) == labels).double().mean())


def fit_linear_probe(
    features: Tensor, labels: Tensor, *, num_classes: int, l2: float = 1.0, max_iterations: int = 1000
) -> LinearProbe:
    """The classifier that minimises sum_n -log p(label_n | features_n) + l2 / 2 |weight|^2.

    Full-batch L-BFGS in float64 from zero: nothing is drawn, so the same rows give the same probe on one machine.
    scikit-learn's `LogisticRegression(C=1 / l2)` on standardised features is the same problem.

    Args:
        features: [N, D], finite.
        labels: int64 [N], below `num_classes`.
        l2: at least 0; the bias is not penalised.

    Raises:
        ValueError: a shape or a range is another.
    """
    _check(features, labels, num_classes)
    wide = features.detach().double()
    mean, deviation = wide.mean(0), wide.std(0, correction=0)
    scale = torch.where(deviation > 1e-12 * (1 + mean.abs()), deviation, 1.0)
    x = (wide - mean) / scale
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, max_eval=2 * max_iterations, history_size=20,
        tolerance_grad=1e-6, tolerance_change=1e-14, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + l2 / (2 * len(x)) * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if features.dim() != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"features: expected [N, D] and labels [N], got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    if not torch.isfinite(features).all():
        raise ValueError("features: expected finite numbers, got NaN or infinity")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels: expected 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
