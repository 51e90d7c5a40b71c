"""Weighted means of per-sample figures."""

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum

WEIGHT = "weight"


class Means:
    """Sums of named per-sample figures and their total weight, in float64.

    Batches are kept until a sum is asked for, and then summed one after the other: so an `add` costs a step next to
    nothing, and when it is asked does not change a bit.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._recent: list[tuple[tuple[str, ...], Tensor]] = []  # names and, [names, B], their figures
        self._device: torch.device | None = None

    @torch.no_grad()
    def add(self, figures: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add a batch: each figure [B], weight [B].

        Raises:
            ValueError: a figure is not one number a sample.
        """
        for name, values in figures.items():
            if values.shape != weight.shape:
                raise ValueError(
                    f"{name}: expected one number a sample {tuple(weight.shape)}, got {tuple(values.shape)}"
                )
        self._device = weight.device
        self._recent.append(((WEIGHT, *figures), torch.stack([weight, *figures.values()])))

    def state_dict(self) -> dict[str, float]:
        """Sums and total weight over all ranks, exact as text; every rank must call it."""
        self._sum_recent()
        names = sorted(self._sums)
        totals = torch.tensor([self._sums[name] for name in names], dtype=torch.float64, device=self._device)
        return dict(zip(names, all_reduce_sum(totals).tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`; one rank alone must load it."""
        self._sums, self._recent = dict(state), []

    def compute(self) -> dict[str, float]:
        """The means over all ranks; every rank must call it. Empty when nothing that weighs was added anywhere."""
        totals = self.state_dict()
        weight = totals.pop(WEIGHT, 0.0)
        return {name: total / weight for name, total in totals.items()} if weight > 0 else {}

    def _sum_recent(self) -> None:
        for (names, _), batches in groupby(self._recent, key=lambda batch: (batch[0], batch[1].shape)):
            values = torch.stack([figures for _, figures in batches]).double()  # [batches, names, B]
            weight = values[:, :1]
            sums = torch.where(weight > 0, values, 0).mul_(weight).sum(2)
            sums[:, 0] = weight.sum(2)[:, 0]
            for row in sums.tolist():
                for name, value in zip(names, row, strict=True):
                    self._sums[name] = self._sums.get(name, 0.0) + value
        self._recent.clear()
