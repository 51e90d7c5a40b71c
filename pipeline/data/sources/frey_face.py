"""The Frey face: 1,965 frames of one face, 28 x 20, gray; no labels, no official split.

The file frey_rawface.mat (MATLAB 5), from https://cs.nyu.edu/~roweis/data.html, has a frame in each column of `ff`.

The frames are a film, so one and the next are almost the same picture. Divided one by one, a test split would hold what
the training split has seen. Blocks of 20 consecutive frames therefore form a group, and a group stays in one split:
only the borders of blocks remain as neighbours across splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import files
from pipeline.data.config import FreyFaceSource
from pipeline.data.shape import Shape
from pipeline.data.sources.base import Source, binary, record_batch
from pipeline.errors import UserError

FRAMES = 1965
BLOCK_FRAMES = 20
_SHAPE = Shape(28, 20, 1)


def open_frey_face(config: FreyFaceSource) -> Source:
    """The frames in their order.

    Raises:
        UserError: the file cannot be read, or is not the published one.
    """
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"data.source.path: {path}: no such file; set it to the published frey_rawface.mat")
    frames = _read(path).T.reshape(-1, *_SHAPE)
    return Source(
        name="frey_face",
        partitions=(_Frames(np.ascontiguousarray(frames)),),
        pixels=_SHAPE,
        digests={"frey_rawface.mat": files.sha256(path)},
        in_memory=True,
    )


def _read(path: Path) -> NDArray[Any]:
    """The variable `ff`, uint8 [560, 1965]."""
    from scipy.io import loadmat, whosmat  # half a second to import

    try:
        # What it holds is asked first: a variable of another size is not read.
        found = {name: (kind, shape) for name, shape, kind in whosmat(str(path), appendmat=False)}
        expected = ("uint8", (_SHAPE.size, FRAMES))
        if found.get("ff") == expected:
            return loadmat(str(path), appendmat=False, variable_names=["ff"])["ff"]  # type: ignore[no-any-return]
    except Exception as error:  # scipy raises whatever its parser stumbles over, an OSError of its own too
        if isinstance(error, OSError) and error.strerror is not None:
            raise UserError(f"data.source.path: {path}: cannot be read: {error.strerror}") from None
        raise UserError(
            f"data.source.path: {path}: not a whole MATLAB 5 file ({_first_line(error)}); fetch frey_rawface.mat again"
        ) from None
    held = "; ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in sorted(found.items())) or "nothing"
    raise UserError(
        f"data.source.path: {path}: expected the variable ff, uint8 [{_SHAPE.size}, {FRAMES}], found {held}; "
        "set it to the published frey_rawface.mat"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


@dataclass(frozen=True, slots=True)
class _Frames:
    """All frames, uint8 [1965, 28, 20, 1]."""

    images: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        return len(self.images)

    def batches(self) -> Iterator[pa.RecordBatch]:
        rows = range(len(self.images))
        yield record_batch(
            [f"frey_face-{row:06d}" for row in rows],
            binary(self.images),
            group=[f"frames-{row // BLOCK_FRAMES:04d}" for row in rows],
            source="frey_rawface.mat",
        )
