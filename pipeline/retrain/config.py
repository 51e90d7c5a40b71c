"""The section `retrain` of params.yaml: which new data are trained on, and when a new model takes the old one's place.

No stage of DVC reads it, so changing it makes no result stale.
"""

from dataclasses import dataclass, field
from typing import Literal

from vae_core.config import Strict, check


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitConfig(Strict):
    """What a figure of a new model must keep to, whatever the old model's is.

    Attributes:
        min, max: least and most allowed, themselves included; null: no such limit.
        required: true: a family that does not report the figure is not promoted; false: it is not asked.
    """

    min: float | None = None
    max: float | None = None
    required: bool = False

    def __post_init__(self) -> None:
        given = self.min is not None or self.max is not None
        check(self, "min", given, "a number here or for max")
        ordered = self.min is None or self.max is None or self.min <= self.max
        check(self, "max", ordered, f"a number of at least min ({self.min})")


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftConfig(Strict):
    """How far new data may be from those that dvc.lock has. null: any distance.

    Attributes:
        mean, std: of each channel over the training images, pixels in [0, 1]: largest change.
        class_share: of each class in all rows: largest change.
        fewer_rows: largest fraction of the rows that may be gone.
        new_classes, vanished_classes: whether there may be any.
    """

    mean: float | None = 0.05
    std: float | None = 0.05
    class_share: float | None = 0.05
    fewer_rows: float | None = 0.1
    new_classes: bool = False
    vanished_classes: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std", "class_share", "fewer_rows"):
            value = getattr(self, name)
            check(self, name, value is None or 0 <= value <= 1, "a number from 0 to 1, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainConfig(Strict):
    """The whole section.

    Attributes:
        metric: figure of the test split by which the two models are compared; null: the family's primary one.
        direction: whether less or more of it is better; null: as it is known of the figure.
        min_gain: by how much a new model must be better, in the unit of the figure. 0: by anything at all.
        limits: name of a figure -> what a new model must keep to.
    """

    metric: str | None = None
    direction: Literal["min", "max"] | None = None
    min_gain: float = 0.0
    limits: dict[str, LimitConfig] = field(default_factory=dict)
    drift: DriftConfig = DriftConfig()

    def __post_init__(self) -> None:
        check(self, "min_gain", self.min_gain >= 0, "a number of at least 0")
        check(self, "metric", self.metric != "", "the name of a figure, or null")
