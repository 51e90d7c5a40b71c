"""Random numbers as a function of where they are used: seed, scope, purpose, step and position in the global batch.

No step reads a global generator, so a run that resumes, or that is spread over other workers, sees the same noise.
"""

import hashlib
import math
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

    def binary(self, purpose: str, levels: Tensor) -> Tensor:
        """float32, 1 with probability level / 255, else 0, for the uint8 `levels` [B, ...].

        From 16 random bits each, a third of the work of a float32: so it holds to within 2^-16, and exactly for 0 and
        255.
        """
        shape = (self.rows, *levels.shape[1:])
        count = math.prod(shape)
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self._device)
        words.random_(-(2**63), None, generator=self.generator(purpose))
        drawn = self._own(words.view(torch.int16)[:count].view(shape))
        limit = levels * (2**16 / 255) - 2**15
        return torch.lt(drawn, limit, out=torch.empty_like(limit))

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
        return whole.index_select(0, self.position % self.rows)  # padding may lie beyond the end; its weight is 0
