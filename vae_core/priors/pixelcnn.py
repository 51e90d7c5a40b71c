"""p(codes | condition), level after level from the top: its cost in nats, and draws from it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config.priors import PixelCNNConfig
from vae_core.noise import Noise
from vae_core.priors.level import Level

Choose: TypeAlias = Callable[[int, int, Tensor], Tensor]


def build_prior(
    config: PixelCNNConfig, grids: Sequence[tuple[int, ...]], num_codes: int, condition_dim: int = 0, *, seed: int = 0
) -> "CodePrior":
    """The prior with its initial weights, a function of `seed`; the global generator is left as it was.

    Raises:
        ValueError: a grid is none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CodePrior(config, tuple(grids), num_codes, condition_dim)


class CodePrior(nn.Module):
    """Autoregressive prior over grids of codes: p(top) p(next | top) ... (arXiv:1906.00446, section 3.2).

    Args:
        grids: shape of each level's codes, (h, w) or (n,), the top level first.
        num_codes: codes are whole numbers from 0 to below this.
        condition_dim: E of the condition vectors; 0: there are none.

    Raises:
        ValueError: a grid is none.
    """

    def __init__(
        self, config: PixelCNNConfig, grids: tuple[tuple[int, ...], ...], num_codes: int, condition_dim: int = 0
    ) -> None:
        super().__init__()
        if not grids or any(len(grid) not in (1, 2) or min(grid) < 1 for grid in grids):
            raise ValueError(f"grids: expected (h, w) or (n,) of each level, got {grids}")
        self.config, self.grids = config, tuple(tuple(grid) for grid in grids)
        self.num_codes, self.condition_dim = num_codes, condition_dim
        levels = nn.ModuleList(
            Level(config, _plane(grid), num_codes=num_codes, condition_dim=condition_dim, levels_above=above)
            for above, grid in enumerate(self.grids)
        )
        self.levels = cast(list[Level], levels)

    @property
    def positions(self) -> int:
        """Codes an image, over all levels."""
        return sum(math.prod(grid) for grid in self.grids)

    def forward(self, codes: Sequence[Tensor], c: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """-log p of each level's codes given the levels above and the condition, in nats: float32 [B, levels].

        Args:
            codes: int64 [B, *grid] of each level.
            c: [B, E], or None.
            keep: factors of dropout, from `draws`.

        Raises:
            ValueError: the shapes are not those of this prior.
        """
        logits = self.logits(codes, c, keep)
        return torch.stack([_nll(one, grid) for one, grid in zip(logits, codes, strict=True)], dim=1)

    def nll(self, codes: Sequence[Tensor], c: Tensor | None) -> Tensor:
        """-log p(codes | c) in nats, float32 [B]."""
        total: Tensor = self(codes, c).sum(1)
        return total

    def logits(self, codes: Sequence[Tensor], c: Tensor | None, keep: Tensor | None = None) -> tuple[Tensor, ...]:
        """[B, h, w, num_codes] of each level: of each position given all before it and the levels above."""
        rows = self.check_codes(codes)
        self._check_condition(c, rows)
        planes = [one.reshape(rows, *_plane(grid)) for one, grid in zip(codes, self.grids, strict=True)]
        return tuple(
            level.logits(planes[i], planes[:i], c, None if keep is None else keep[:, i])
            for i, level in enumerate(self.levels)
        )

    def draws(self, noise: Noise) -> Tensor | None:
        """The factors of one step's dropout, [B, levels, layers, C]: 0 or 1 / (1 - dropout); None without dropout."""
        share = self.config.dropout
        if share == 0:
            return None
        uniform = noise.uniform("prior_dropout", len(self.grids), self.config.layers, self.config.channels)
        return (uniform >= share) / (1 - share)

    @torch.no_grad()
    def walk(self, rows: int, c: Tensor | None, choose: Choose) -> tuple[Tensor, ...]:
        """Codes of `rows` images, int64 [B, *grid] of each level, chosen one position after the other.

        The logits are those of `logits`, at the cost of one evaluation of it for all positions together.

        Args:
            choose: (level, position, logits [B, num_codes]) -> the codes of that position, int64 [B].
        """
        self._check_condition(c, rows)
        planes: list[Tensor] = []
        for i, level in enumerate(self.levels):
            planes.append(level.walk(planes, c, rows, partial(choose, i)))
        return tuple(plane.reshape(rows, *grid) for plane, grid in zip(planes, self.grids, strict=True))

    def sample(
        self, count: int, c: Tensor | None, *, generator: torch.Generator, temperature: float = 1.0
    ) -> tuple[Tensor, ...]:
        """Draws of the codes of `count` images, int64 [count, *grid] of each level.

        Args:
            c: [count, E], or None.
            generator: on the CPU for draws that do not depend on the prior's device.
            temperature: the logits are divided by it; below 1 probable codes become more so.

        Raises:
            ValueError: the temperature is not above 0, or the condition does not fit.
        """
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")

        def draw(level: int, position: int, logits: Tensor) -> Tensor:
            reached = (logits.double() / temperature).softmax(-1).cumsum(-1)
            uniform = torch.rand(count, 1, generator=generator, device=generator.device, dtype=torch.float64)
            found = torch.searchsorted(reached, uniform.to(reached.device) * reached[:, -1:], right=True)
            return found[:, 0].clamp(max=self.num_codes - 1)

        return self.walk(count, c, draw)

    def check_codes(self, codes: Sequence[Tensor]) -> int:
        """B.

        Raises:
            ValueError: these are no codes of this prior's grids, or not of equally many images.
        """
        shapes = [tuple(one.shape[1:]) for one in codes]
        if shapes != list(self.grids) or len({len(one) for one in codes}) != 1:
            got = [tuple(one.shape) for one in codes]
            raise ValueError(f"codes: expected [B, *grid] of the grids {self.grids}, got {got}")
        return len(codes[0])

    def _check_condition(self, c: Tensor | None, rows: int) -> None:
        expected = (rows, self.condition_dim) if self.condition_dim else None
        got = None if c is None else tuple(c.shape)
        if got != expected:
            raise ValueError(f"condition: expected {expected}, got {got}")


def uniform_nats(prior: CodePrior) -> float:
    """What an image's codes cost in nats where every code is equally probable: the baseline of a prior."""
    return prior.positions * math.log(prior.num_codes)


def _plane(grid: tuple[int, ...]) -> tuple[int, int]:
    return (1, grid[0]) if len(grid) == 1 else (grid[0], grid[1])


def _nll(logits: Tensor, codes: Tensor) -> Tensor:
    """[B] from [B, h, w, num_codes] and [B, *grid]."""
    each = F.cross_entropy(logits.float().flatten(0, -2), codes.flatten(), reduction="none")
    return each.view(len(codes), -1).sum(1)
