"""What a model is conditioned on, as a vector that encoder, decoder and learned prior receive."""

from dataclasses import dataclass
from typing import Protocol, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_core.config import Condition, DataSpec


class HasColumns(Protocol):
    """What a batch knows of each row besides its pixels; a column that the data lack is None."""

    @property
    def labels(self) -> Tensor | None: ...
    @property
    def attributes(self) -> Tensor | None: ...
    @property
    def embedding(self) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class Known:
    """Columns given by hand: labels int64 [B], attributes float32 [B, A], embedding float32 [B, E]."""

    labels: Tensor | None = None
    attributes: Tensor | None = None
    embedding: Tensor | None = None


class Conditioner:
    """Turns a batch's column into vectors [B, `dim`]: the label one-hot, attributes and embeddings as they are.

    Raises:
        ValueError: the data have no such column.
    """

    def __init__(self, condition: Condition, data: DataSpec) -> None:
        self.condition = condition
        self.classes = data.num_classes
        self.dim = _dim(condition, data)

    def __call__(self, known: HasColumns) -> Tensor:
        """float32 [B, dim].

        Raises:
            ValueError: the column is missing, or has another width.
        """
        match self.condition:
            case "none":
                raise ValueError("a model without a condition was asked for one")
            case "label":
                labels = _there(known.labels, "label")
                return F.one_hot(labels, self.classes).to(torch.float32)
            case "attributes":
                values = _there(known.attributes, "attributes")
            case "embedding":
                values = _there(known.embedding, "embedding")
            case other:
                assert_never(other)
        if values.shape[1] != self.dim:
            raise ValueError(f"condition: {self.condition}: expected {self.dim} numbers a row, got {values.shape[1]}")
        return values.float()


def _dim(condition: Condition, data: DataSpec) -> int:
    match condition:
        case "none":
            return 0
        case "label":
            width, least = data.num_classes, 2
        case "attributes":
            width, least = data.attributes, 1
        case "embedding":
            width, least = data.embedding, 1
        case other:
            assert_never(other)
    if width < least:
        wanted = {"label": "at least two classes", "attributes": "attributes", "embedding": "an embedding"}[condition]
        raise ValueError(f"condition: {condition} needs data with {wanted}; these have none")
    return width


def _there(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(f"a model conditioned on {name} was called without")
    return values
