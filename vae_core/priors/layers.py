"""Layers of a gated PixelCNN. Maps are [B, h, w, C]; what follows the embedding sees only what comes before.

A code enters the stacks moved one row down (vertical) or one column right (horizontal), so that no later layer needs a
mask: each reads its own position and positions above or to the left.

Every layer has two forms that give the same numbers: of whole grids, for training, and of one row or one position,
for drawing codes one after another.

Source: van den Oord et al., arXiv:1606.05328, sections 2.1 to 2.3. The vertical stack has a residual connection here
too: without it, its signal fades in the first steps of training.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gate(x: Tensor) -> Tensor:
    """tanh of the first half of the channels times the logistic function of the second: [..., 2 C] -> [..., C]."""
    value, opening = x.chunk(2, dim=-1)
    return value.tanh() * opening.sigmoid()


def moved_right(x: Tensor, columns: int = 1) -> Tensor:
    """`x` [B, h, w, C] with zeros on its left; what leaves on the right is lost."""
    return F.pad(x, (0, 0, columns, 0))[:, :, : x.shape[2]]


def moved_down(x: Tensor) -> Tensor:
    """`x` [B, h, w, C] with a row of zeros above; the last row is lost."""
    return F.pad(x, (0, 0, 0, 0, 1, 0))[:, : x.shape[1]]


def dilations(layers: int, height: int, width: int) -> tuple[int, ...]:
    """Distance between the taps of each layer: 1, 2, 4, ... again and again, the shortest such cycle that lets the last
    position of the grid see the first; all powers where even they do not reach.
    """
    farthest = max(width - 1, height - 2)
    for cycle in range(1, layers + 1):
        found = tuple(2 ** (layer % cycle) for layer in range(layers))
        if sum(found) >= farthest:
            break
    return found


class VerticalLayer(nn.Module):
    """Sees all rows above: 2 x 3 taps on its own row and `dilation` rows higher."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Conv2d(channels, 2 * channels, (2, 3), dilation=dilation, padding=(0, dilation))
        self.context = nn.Linear(channels, 2 * channels, bias=False)
        self.across = nn.Linear(2 * channels, 2 * channels, bias=False)

    def forward(self, v: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The next map [B, h, w, C], and what the horizontal layer receives, [B, h, w, 2 C]."""
        padded = F.pad(v.permute(0, 3, 1, 2), (0, 0, self.dilation, 0))
        return self._end(v, self.taps(padded).permute(0, 2, 3, 1), context)

    def row(self, window: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one row, [B, w, C] and [B, w, 2 C].

        Args:
            window: [B, d + 1, w + 2 d, C]: the row, the d = `dilation` rows above it, d columns of zeros on both sides.
            context: [B, w, C] of the row.
        """
        d, width = self.dilation, context.shape[1]
        taps = torch.cat([window[:, y, x : x + width] for y in (0, d) for x in (0, d, 2 * d)], dim=-1)
        weight = self.taps.weight.permute(0, 2, 3, 1).flatten(1)
        return self._end(window[:, d, d : d + width], F.linear(taps, weight, self.taps.bias), context)

    def _end(self, v: Tensor, mixed: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mixed = mixed + self.context(context)
        return v + gate(mixed), self.across(mixed)


class HorizontalLayer(nn.Module):
    """Sees the positions to the left in its row, and through the vertical layer beside it all rows above."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Linear(2 * channels, 2 * channels)
        self.context = nn.Linear(channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, here: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
        """The next map [B, h, w, C].

        Args:
            bias: [B, h, w, 2 C] from context and vertical layer.
            keep: [B, 1, 1, C] factors of dropout.
        """
        return self.step(moved_right(here, self.dilation), here, bias, keep)

    def step(self, past: Tensor, here: Tensor, bias: Tensor, keep: Tensor | None = None) -> Tensor:
        """The same, [..., C], from the map `here` and the one `dilation` columns before."""
        gated = gate(self.taps(torch.cat((past, here), dim=-1)) + bias)
        added: Tensor = self.out(gated if keep is None else gated * keep)
        return here + added


class Context(nn.Module):
    """What all positions of a level may know: where they are, the condition, and every level above.

    The codes above are embedded, enlarged to this level's grid and passed through convolutions without a mask, as in
    VQ-VAE-2 (arXiv:1906.00446, section 3.2).
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], num_codes: int, condition_dim: int, levels_above: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(torch.zeros(*grid, channels))
        self.condition = nn.Linear(condition_dim, channels, bias=False) if condition_dim else None
        self.embeddings = nn.ModuleList(nn.Embedding(num_codes, channels) for _ in range(levels_above))
        self.stack = _stack(channels, grid) if levels_above else None

    def forward(self, above: Sequence[Tensor], c: Tensor | None) -> Tensor:
        """[B, h, w, C], or [1, h, w, C] where it is the same for all images.

        Args:
            above: int64 [B, h', w'] of each level above.
            c: [B, E], or None.
        """
        context = self.position[None]
        if self.condition is not None and c is not None:
            context = context + self.condition(c.to(self.position.dtype))[:, None, None]
        if self.stack is not None:
            maps = [self._enlarged(e(codes)) for e, codes in zip(self.embeddings, above, strict=True)]
            context = context + self.stack(torch.stack(maps).sum(0)).permute(0, 2, 3, 1)
        return context

    def _enlarged(self, embedded: Tensor) -> Tensor:
        return F.interpolate(embedded.permute(0, 3, 1, 2), size=self.grid, mode="nearest")


def _stack(channels: int, grid: tuple[int, int]) -> nn.Sequential:
    """Three convolutions on [B, C, h, w]; along the width alone where there is one row."""
    kernel = (1 if grid[0] == 1 else 3, 3)
    first, second, third = (nn.Conv2d(channels, channels, kernel, padding="same") for _ in range(3))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
