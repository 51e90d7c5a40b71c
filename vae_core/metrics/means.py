"""Weighted means of per-sample figures."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum


class Means:
    """Sums of named per-sample figures and their total weight, in float64."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weight: Tensor | None = None

    @torch.no_grad()
    def add(self, figures: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add a batch: each figure [B], weight [B].

        Raises:
            ValueError: a figure is not one number a sample.
        """
        wide = weight.double()
        for name, values in figures.items():
            if values.shape != weight.shape:
                raise ValueError(
                    f"{name}: expected one number a sample {tuple(weight.shape)}, got {tuple(values.shape)}"
                )
            self.sums[name] = (
                self.sums.get(name, torch.zeros((), dtype=torch.float64, device=wide.device))
                + (torch.where(wide > 0, values.double(), 0) * wide).sum()
            )
        self.weight = wide.sum() if self.weight is None else self.weight + wide.sum()

    def state_dict(self) -> dict[str, float]:
        """Sums and total weight over all ranks, exact as text; every rank must call it."""
        if self.weight is None:
            return {}
        names = sorted(self.sums)
        totals = all_reduce_sum(torch.stack([self.weight, *(self.sums[name] for name in names)])).tolist()
        return dict(zip(("weight", *names), totals, strict=True))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`; one rank alone must load it."""
        totals = {name: torch.tensor(total, dtype=torch.float64) for name, total in state.items()}
        self.weight = totals.pop("weight", None)
        self.sums = totals

    def compute(self) -> dict[str, float]:
        """The means over all ranks; every rank must call it. Empty when nothing that weighs was added anywhere."""
        totals = self.state_dict()
        weight = totals.pop("weight", 0.0)
        return {name: total / weight for name, total in totals.items()} if weight > 0 else {}
