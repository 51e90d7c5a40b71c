"""What a model is conditioned on, as a vector that encoder and decoder receive."""

import torch.nn.functional as F
from torch import Tensor, nn


class LabelCondition(nn.Module):
    """One-hot vector of the label."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError("condition: label needs data with at least two classes; these have no labels")
        self.dim = num_classes

    def forward(self, labels: Tensor | None) -> Tensor:
        """[B] int64 -> [B, num_classes] float32."""
        if labels is None:
            raise ValueError("a model conditioned on the label was called without labels")
        return F.one_hot(labels, self.dim).float()
