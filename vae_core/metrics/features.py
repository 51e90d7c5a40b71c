"""Features of images from a small classifier trained on the labels of the data at hand.

They stand in for Inception features where its weights are not given, or where the images are none that it knows.
Distances between them can be compared between models on the same data with the same classifier, and with nothing else.
"""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_core.batch import Batch
from vae_core.config import DataSpec
from vae_core.linear import Linear

NAME = "classifier features (trained here)"  # what a figure made of them is to be called
FEATURES = 64

_WIDTHS = (16, 32, 64, 64, 64, 64)  # channels after each halving
_LARGEST_GRID = 7  # halved until both sides are at most this


class FeatureClassifier(nn.Module):
    """Strided convolutions, a layer of 64 features, a class for each label."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, height, width = data.shape
        for out in _WIDTHS:
            if max(height, width) <= _LARGEST_GRID:
                break
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.ReLU()]
            channels, height, width = out, -(-height // 2), -(-width // 2)
        grid = min(height, _LARGEST_GRID), min(width, _LARGEST_GRID)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.hidden = Linear(channels * grid[0] * grid[1], FEATURES)
        self.out = Linear(FEATURES, data.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] pixels from 0 to 1 -> [B, 64], each between -1 and 1."""
        return torch.tanh(self.hidden(self.body(2 * x - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: [B, C, H, W] pixels from 0 to 1 -> [B, num_classes]."""
        logits: Tensor = self.out(self.features(x))
        return logits


def train_classifier(
    batches: Iterable[Batch],
    data: DataSpec,
    *,
    steps: int,
    seed: int,
    learning_rate: float = 4e-3,
    device: torch.device | None = None,
) -> FeatureClassifier:
    """A classifier of the data, in evaluation mode and with frozen weights.

    Adam; the learning rate falls in a line to 0. The result depends on seed and batches alone on one CPU with one
    number of threads; a GPU may sum in another order each time.

    Args:
        batches: at least `steps` of them, with labels; rows of weight 0 do not count.
        steps: optimizer steps.
        seed: of the initial weights.
        device: where to train; the CPU by default.

    Raises:
        ValueError: the data have no labels, or the batches end before `steps`.
    """
    device = device or torch.device("cpu")
    model = _initial(data, seed).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    done = 0
    with torch.enable_grad():
        for done, batch in enumerate(islice(batches, steps), start=1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - (done - 1) / steps)
            _step(model, batch.to(device), optimizer)
    if done < steps:
        raise ValueError(f"batches: expected {steps}, one a step, got {done}")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def classifier_accuracy(model: FeatureClassifier, batches: Iterable[Batch]) -> float:
    """Share of the rows that are classified rightly, 0 to 1. This process's rows only.

    Raises:
        ValueError: the batches have no labels, or there are none.
    """
    device = model.out.weight.device
    right = total = 0.0
    for batch in (batch.to(device) for batch in batches):
        hit = model(_pixels(batch)).argmax(1) == _labels(batch)
        right += float((hit * batch.weight).sum())
        total += float(batch.weight.sum())
    if total == 0:
        raise ValueError("batches: expected rows to classify, got none")
    return right / total


def _initial(data: DataSpec, seed: int) -> FeatureClassifier:
    if data.num_classes < 2:
        raise ValueError(f"{NAME}: expected data with labels of two classes or more, got {data.num_classes} classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureClassifier(data)


def _step(model: FeatureClassifier, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    loss = F.cross_entropy(model(_pixels(batch)), _labels(batch), reduction="none")  # [B] nats
    optimizer.zero_grad(set_to_none=True)
    ((loss * batch.weight).sum() / batch.weight.sum().clamp(min=1)).backward()
    optimizer.step()


def _pixels(batch: Batch) -> Tensor:
    # As plain rows: convolutions this narrow are three times as slow with the channels of a pixel side by side.
    return batch.images.contiguous(memory_format=torch.contiguous_format).float() / 255


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ValueError(f"{NAME}: expected batches with labels, got none")
    return batch.labels
