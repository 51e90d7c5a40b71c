"""Random numbers as a function of where they are used: seed, scope, purpose, step and position in the global batch.

No step reads a global generator, so a run that resumes, or that is spread over other workers, sees the same noise.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.batch import Batch


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one step.

    Each draw is made for the whole global batch and this rank's rows are kept: `rows` times the cost of one row on
    every rank, which is little beside a training step, for numbers that do not depend on the number of ranks.

    Attributes:
        seed: of the run.
        scope: what the step belongs to, such as `train` or `test`.
        step: counts within the scope.
        position: int64 [B], places in the global batch.
        rows: rows of the global batch.
    """

    seed: int
    scope: str
    step: int
    position: Tensor
    rows: int

    @classmethod
    def of(cls, batch: Batch, *, seed: int, scope: str, step: int) -> "Noise":
        return cls(seed=seed, scope=scope, step=step, position=batch.position, rows=batch.global_rows)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """[B, *shape] from U[0, 1)."""
        return self._own(torch.rand((self.rows, *shape), generator=self.generator(purpose), device=self._device))

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """[B, *shape] from N(0, 1)."""
        return self._own(torch.randn((self.rows, *shape), generator=self.generator(purpose), device=self._device))

    def integers(self, purpose: str, high: int, count: int) -> Tensor:
        """[count] integers below `high`, the same on every rank."""
        return torch.randint(high, (count,), generator=self.generator(purpose), device=self._device)

    def generator(self, purpose: str) -> torch.Generator:
        """The generator behind one purpose.

        The CPU generator keeps 32 bits of its seed; adding the step to a hash keeps the steps of a purpose apart.
        """
        digest = hashlib.blake2b(f"{self.seed}/{self.scope}/{purpose}".encode(), digest_size=7).digest()
        return torch.Generator(self._device).manual_seed(int.from_bytes(digest) + self.step)

    @property
    def _device(self) -> torch.device:
        return self.position.device

    def _own(self, whole: Tensor) -> Tensor:
        return whole[self.position % self.rows]  # padding rows may lie beyond the end; their weight is 0
