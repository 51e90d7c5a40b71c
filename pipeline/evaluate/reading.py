"""What can be read from a representation: labels by a linear probe, factors by disentanglement scores."""

from collections.abc import Collection
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split
from pipeline.evaluate.disentanglement import SCORES, disentanglement_scores
from pipeline.evaluate.seen import Seen, batches
from vae_core.metrics.probe import fit_linear_probe
from vae_core.models import CodeModel, ContinuousModel, Model

TESTED_ROWS = 10_000  # of the representation, at most
PROBE_WIDTH = 4096  # numbers of a representation above which no probe is fitted: it would take longer than the rest
FACTOR_VALUES = 64  # an attribute with at most so many values is a factor
PROBE = "probe_accuracy"
DISENTANGLEMENT = tuple(f"disentanglement_{name}" for name in SCORES)


class Representation:
    """Codes as vectors, and the labels and attributes that go with them, of the first `limit` rows."""

    def __init__(self, model: Model, limit: int) -> None:
        self.model, self.limit = model, limit
        self.rows = 0
        self.parts: dict[str, list[Tensor]] = {"codes": [], "labels": [], "attributes": []}

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        here = seen.first(self.limit - self.rows)
        if len(here.x) == 0:
            return
        latent = here.latent
        vectors = latent if isinstance(latent, Tensor) else cast(CodeModel, self.model).vectors(latent)
        for name, values in (("codes", vectors), ("labels", here.batch.labels), ("attributes", here.batch.attributes)):
            if values is not None:
                self.parts[name].append(values[here.batch.weight > 0].cpu())
        self.rows += int((here.batch.weight > 0).sum())

    def __getitem__(self, name: str) -> Tensor | None:
        return torch.cat(self.parts[name]) if self.parts[name] else None


class Reading:
    """The representation of a split is judged by what was learned from that of `train`; a measure.

    `names` may hold more than `compute` gives: whether attributes are factors shows when they are seen.
    """

    def __init__(self, model: Model, train: Split, config: EvaluateConfig, wanted: Collection[str]) -> None:
        self.model, self.train, self.config = model, train, config
        self.tested = Representation(model, TESTED_ROWS)
        self.names = [name for name in readable(model, config) if name in wanted]

    def add(self, seen: Seen) -> None:
        self.tested.add(seen)

    def compute(self) -> dict[str, float]:
        probing = self.config.probe_images if PROBE in self.names and self.tested["labels"] is not None else 0
        scoring = self.config.factor_images if set(DISENTANGLEMENT) & set(self.names) and self._has_factors() else 0
        if not probing and not scoring:
            return {}
        learned = Representation(self.model, max(probing, scoring))
        for seen in batches(self.model, self.train, self.config, what="read the representation", rows=learned.limit):
            learned.add(seen)
        return (self._probe(learned, probing) if probing else {}) | (self._scores(learned) if scoring else {})

    def _has_factors(self) -> bool:
        return _factors(self.tested["attributes"]) is not None

    def _probe(self, learned: Representation, rows: int) -> dict[str, float]:
        (codes, labels), known = _labelled(self.tested), _labelled(learned)
        classes = self.model.data.num_classes
        probe = fit_linear_probe(*(each[:rows] for each in known), num_classes=classes)
        return {PROBE: probe.accuracy(codes, labels)}

    def _scores(self, learned: Representation) -> dict[str, float]:
        codes, factors = learned["codes"], _factors(learned["attributes"])
        if codes is None or factors is None:
            return {}
        scores = disentanglement_scores(codes.numpy(), factors, seed=self.config.seed)
        return {f"disentanglement_{name}": score for name, score in scores.items()}


def readable(model: Model, config: EvaluateConfig) -> list[str]:
    """The names of the figures that a reading of such data may give."""
    narrow = _width(model) <= PROBE_WIDTH
    names = [PROBE] if config.probe_images and model.data.num_classes and narrow else []
    several = isinstance(model, ContinuousModel) and model.latent_dim > 1  # with one, none is set apart from others
    return [*names, *(DISENTANGLEMENT if several and config.factor_images and model.data.attributes > 1 else ())]


def _width(model: Model) -> int:
    """Numbers of a representation."""
    if isinstance(model, ContinuousModel):
        return model.latent_dim
    assert isinstance(model, CodeModel)
    device = next(model.parameters()).device
    with torch.no_grad():
        none = tuple(torch.zeros(1, *grid, dtype=torch.int64, device=device) for grid in model.grids)
        return model.vectors(none).shape[1]


def _labelled(rows: Representation) -> tuple[Tensor, Tensor]:
    codes, labels = rows["codes"], rows["labels"]
    assert codes is not None
    assert labels is not None
    return codes, labels


def _factors(attributes: Tensor | None) -> np.ndarray | None:
    """Integers [N, F] of the attributes that take few values; None where there are fewer than two of those."""
    if attributes is None:
        return None
    numbered = [column.unique(return_inverse=True) for column in attributes.T]
    factors = [numbers for values, numbers in numbered if 2 <= len(values) <= FACTOR_VALUES]
    return torch.stack(factors, dim=1).numpy() if len(factors) >= 2 else None
