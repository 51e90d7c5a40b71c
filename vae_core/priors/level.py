"""The distribution of one level's codes given the levels above: of whole grids at once, or position after position."""

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from vae_core.config.priors import PixelCNNConfig
from vae_core.priors.layers import Context, HorizontalLayer, VerticalLayer, dilations, moved_down, moved_right

Pick: TypeAlias = Callable[[int, Tensor], Tensor]


class Level(nn.Module):
    """A gated PixelCNN over one grid of codes, [B, h, w].

    A grid of one row has no vertical stack: there are no rows above.
    """

    def __init__(
        self, config: PixelCNNConfig, grid: tuple[int, int], *, num_codes: int, condition_dim: int, levels_above: int
    ) -> None:
        super().__init__()
        self.grid, self.channels = grid, config.channels
        distances = dilations(config.layers, *grid)
        self.context = Context(config.channels, grid, num_codes, condition_dim, levels_above)
        self.embedding = nn.Embedding(num_codes, config.channels)
        vertical = nn.ModuleList(VerticalLayer(config.channels, d) for d in distances if grid[0] > 1)
        horizontal = nn.ModuleList(HorizontalLayer(config.channels, d) for d in distances)
        self.vertical, self.horizontal = cast(list[VerticalLayer], vertical), cast(list[HorizontalLayer], horizontal)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(config.channels, config.channels), nn.ReLU(), nn.Linear(config.channels, num_codes)
        )

    def logits(self, codes: Tensor, above: Sequence[Tensor], c: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """[B, h, w, num_codes]: of each position given all before it.

        Args:
            codes: int64 [B, h, w].
            above: int64 [B, h', w'] of each level above.
            keep: [B, layers, C] factors of dropout.
        """
        context = self.context(above, c)
        embedded = self.embedding(codes)
        biases = [layer.context(context) for layer in self.horizontal]
        v = moved_down(embedded)
        for i, layer in enumerate(self.vertical):
            v, across = layer(v, context)
            biases[i] = biases[i] + across
        h = moved_right(embedded)
        for i, (line, bias) in enumerate(zip(self.horizontal, biases, strict=True)):
            h = line(h, bias, None if keep is None else keep[:, i, None, None])
        logits: Tensor = self.head(h)
        return logits

    def walk(self, above: Sequence[Tensor], c: Tensor | None, rows: int, pick: Pick) -> Tensor:
        """Codes int64 [B, h, w], each what `pick(position, logits [B, num_codes])` returns, in raster order.

        Nothing is computed twice: the vertical stack advances by a row, the horizontal one by a position.
        """
        context = self.context(above, c)
        height, width = self.grid
        codes = torch.zeros(rows, height, width, dtype=torch.int64, device=context.device)
        maps = [_zeros(context, rows, height + d, width + 2 * d) for d in (layer.dilation for layer in self.vertical)]
        for y in range(height):
            biases = self._row(maps, codes, context[:, y], y)
            lines = [_zeros(context, layer.dilation + width, rows) for layer in self.horizontal]
            h = _zeros(context, rows)
            for x in range(width):
                for layer, line, bias in zip(self.horizontal, lines, biases, strict=True):
                    line[layer.dilation + x] = h
                    h = layer.step(line[x], h, bias[x])
                codes[:, y, x] = pick(y * width + x, self.head(h))
                h = self.embedding(codes[:, y, x])
        return codes

    def _row(self, maps: Sequence[Tensor], codes: Tensor, context: Tensor, y: int) -> list[Tensor]:
        """Bias of every horizontal layer in row `y`, [w, B, 2 C]; writes the row into `maps`, the vertical stack's."""
        biases = [layer.context(context) for layer in self.horizontal]
        v = self.embedding(codes[:, y - 1]) if y else torch.zeros_like(context)
        for i, (layer, whole) in enumerate(zip(self.vertical, maps, strict=True)):
            d = layer.dilation
            whole[:, d + y, d : whole.shape[2] - d] = v
            v, across = layer.row(whole[:, y : y + d + 1], context)
            biases[i] = biases[i] + across
        return [bias.transpose(0, 1).contiguous() for bias in biases]


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """[*shape, C] of the type of `like` [..., C]."""
    return like.new_zeros(*shape, like.shape[-1])
