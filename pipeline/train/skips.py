"""Steps that were skipped because loss or gradient was not finite: counted, and the samples behind the last one."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.loader import Loader
from pipeline.errors import Diverged
from vae_core import distributed
from vae_core.batch import Batch
from vae_core.training import Step

NAMED = 5  # samples


@dataclass(frozen=True, slots=True)
class _Seen:
    """A step, whether it was skipped (bool, 0-dim), and of its rows which had a bad loss [B] and their places [B]."""

    step: int
    skipped: Tensor
    bad: Tensor
    position: Tensor


class Skips:
    """Counts without waiting for the device: what came since the last `check` is known only after the next one.

    Attributes:
        count: of the steps skipped up to the last `check`.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._recent: list[_Seen] = []
        self._last: _Seen | None = None

    def add(self, step: int, batch: Batch, done: Step) -> None:
        bad = ~torch.isfinite(done.terms.loss) & (batch.weight > 0)
        self._recent.append(_Seen(step, done.skipped, bad, batch.position))

    def check(self, limit: int, loader: Loader) -> None:
        """Wait for the device, and count; every rank calls it alike.

        Raises:
            Diverged: more steps than `limit` were skipped; it says which samples of the last one had a bad loss.
        """
        self._look()
        if self.count <= limit:
            return
        step, places = self._last_bad()
        named = loader.ids(*divmod(step - 1, loader.steps_per_epoch), places)
        samples = f"; the loss of sample {', '.join(named)} is not finite" if named else "; every loss is finite"
        raise Diverged(
            f"step {step}: loss or gradient not finite, {self.count} steps skipped (train.max_skipped_steps in "
            f"params.yaml allows {limit}){samples}; lower train.learning_rate or train.max_grad_norm, or look at these "
            "samples"
        )

    def _look(self) -> None:
        if self._recent:
            skipped = torch.stack([seen.skipped for seen in self._recent]).tolist()
            found = [seen for seen, bad in zip(self._recent, skipped, strict=True) if bad]
            self.count += len(found)
            self._last = found[-1] if found else self._last
            self._recent.clear()

    def _last_bad(self) -> tuple[int, NDArray[np.int64]]:
        """The last skipped step, and the places in its global batch of some rows whose loss was not finite."""
        assert self._last is not None
        bad = self._last.position[self._last.bad][:NAMED]
        of_all = distributed.all_gather_rows(F.pad(bad, (0, NAMED - len(bad)), value=-1))
        return self._last.step, of_all[of_all >= 0].sort().values[:NAMED].cpu().numpy()
