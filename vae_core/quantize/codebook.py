"""Codebooks that follow the encoder: by exponential moving averages, or by the gradient of the codebook term.

Source: van den Oord et al., arXiv:1711.00937, section 3 and appendix A.1. Two things are not in the paper: the codebook
starts at encoder outputs or at the means of their clusters, and codes that fall out of use restart at encoder outputs.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config import QuantizedConfig
from vae_core.distributed import all_reduce_sum
from vae_core.noise import Noise
from vae_core.quantize.base import Quantized, Quantizer
from vae_core.quantize.statistics import held_here, kmeans, nearest_rows, start_places, sums_by_code, unit


class Codebook(Quantizer, ABC):
    """`num_codes` vectors of `code_dim` numbers, of which each encoder output takes the nearest.

    With cosine distance, encoder outputs and codes are scaled to length 1 where they are read.

    Attributes:
        codebook: [K, D].
        counts: [K] moving average of the encoder outputs a step that chose each code. The moving sum of these outputs
            is codebook x counts, so that sum, count and code cannot disagree.
        started: whether the codes have been set to encoder outputs yet.
    """

    codebook: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, config: QuantizedConfig) -> None:
        super().__init__()
        self.num_codes, self.code_dim = config.num_codes, config.code_dim
        self.ema_decay, self.restart_below = config.ema_decay, config.restart_below
        self.cosine, self.start = config.distance == "cosine", config.start
        self.register_buffer("counts", torch.ones(self.num_codes))
        self.register_buffer("started", torch.tensor(False))
        self._seen_started = False
        self.register_load_state_dict_post_hook(_look_again)  # type: ignore[no-untyped-call]

    @abstractmethod
    def _moved(self, count: Tensor, total: Tensor) -> Tensor:
        """[K, D]: the codes after the number [K, 1] and the sum [K, D] of the encoder outputs that chose each."""

    @abstractmethod
    def _tracked(self, vectors: Tensor, weight: Tensor) -> Tensor:
        """[N, 1 + ...]: what is summed by code for `_moved`, the weight first."""

    def vectors(self) -> Tensor:
        """[K, D]: the codes as they are compared and as the decoder sees them."""
        return unit(self.codebook, 1) if self.cosine else self.codebook

    def quantize(self, z: Tensor) -> Quantized:
        encoded = unit(z, 1) if self.cosine else z
        codes = self.assign(encoded)
        return Quantized(encoded, codes, self.lookup(codes))

    def assign(self, vectors: Tensor) -> Tensor:
        return nearest_rows(vectors.movedim(1, -1), self.vectors())

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors()).movedim(-1, 1)

    @torch.no_grad()
    def update(
        self, encoded: Tensor, codes: Tensor, weight: Tensor, noise: Noise, taken: Tensor, purpose: str = "codes"
    ) -> None:
        vectors = encoded.movedim(1, -1).flatten(1, -2)  # [B, P, D]
        vectors = torch.where(weight[:, None, None] > 0, vectors, 0.0)
        if self._has_started():
            self._move(vectors, codes.flatten(), weight, noise, taken, purpose)
        else:
            self._begin(vectors, weight, noise, taken, purpose)

    def _set(self, codebook: Tensor, counts: Tensor | float, taken: Tensor) -> None:
        """Where the step was `taken`; without waiting for the device to know."""
        self.codebook.copy_(torch.where(taken, codebook, self.codebook))
        self.counts.copy_(torch.where(taken, counts, self.counts))

    def _move(self, vectors: Tensor, codes: Tensor, weight: Tensor, noise: Noise, taken: Tensor, purpose: str) -> None:
        """Follow the encoder, then let unused codes restart; with one collective."""
        positions = vectors.shape[1]
        places = noise.integers(f"{purpose}/restart", noise.rows * positions, self.num_codes)
        tracked = self._tracked(vectors.flatten(0, 1), weight.repeat_interleave(positions))
        sums, fresh = sums_by_code(codes, tracked, self.num_codes), held_here(places, vectors, weight, noise)
        joined = all_reduce_sum(torch.cat((sums, fresh), dim=1))
        count, total, fresh = joined.tensor_split((1, sums.shape[1]), dim=1)
        counts = self.counts * self.ema_decay + count[:, 0] * (1 - self.ema_decay)
        mean_count = count.sum() / self.num_codes
        unused = counts < self.restart_below * mean_count
        codebook = torch.where(unused[:, None], fresh, self._moved(count, total))
        self._set(codebook, torch.where(unused, mean_count, counts), taken)

    def _begin(self, vectors: Tensor, weight: Tensor, noise: Noise, taken: Tensor, purpose: str) -> None:
        """Set every code to an encoder output of the global batch, or to the mean of a cluster of them."""
        positions = vectors.shape[1]
        outputs = noise.rows * positions
        places = start_places(self.num_codes, outputs, noise, purpose)
        codes = all_reduce_sum(held_here(places, vectors, weight, noise))
        if self.start == "kmeans":
            rows, counted = vectors.flatten(0, 1), weight.repeat_interleave(positions)
            codes = kmeans(codes, rows, counted, cosine=self.cosine)
        # As if each had been chosen equally often for long: from a count of 0, the first outputs would throw it about.
        self._set(codes, outputs / self.num_codes, taken)
        self.started.logical_or_(taken)

    def _has_started(self) -> bool:
        # Reading a tensor waits for the device; once the answer is yes, it stays yes.
        self._seen_started = self._seen_started or bool(self.started)
        return self._seen_started


class EMACodebook(Codebook):
    """Each code is the moving average of the encoder outputs that chose it (appendix A.1); no gradient reaches it."""

    def __init__(self, config: QuantizedConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", _any_codes(config))

    def _tracked(self, vectors: Tensor, weight: Tensor) -> Tensor:
        return torch.cat((weight[:, None], vectors * weight[:, None]), dim=1)

    def _moved(self, count: Tensor, total: Tensor) -> Tensor:
        before, share = self.counts[:, None] * self.ema_decay, 1 - self.ema_decay
        counts, sums = before + count * share, self.codebook * before + total * share
        # A code that nothing chooses stays: dividing by next to nothing would draw it to the origin.
        return torch.where(counts > 1e-12, sums / counts, self.codebook)


class LossCodebook(Codebook):
    """A parameter that the codebook term of the objective moves (equation 3)."""

    def __init__(self, config: QuantizedConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(_any_codes(config))

    def _tracked(self, vectors: Tensor, weight: Tensor) -> Tensor:
        return weight[:, None]

    def _moved(self, count: Tensor, total: Tensor) -> Tensor:
        return self.codebook


def _any_codes(config: QuantizedConfig) -> Tensor:
    """Replaced at the first update."""
    return torch.randn(config.num_codes, config.code_dim, generator=torch.Generator().manual_seed(0))


def _look_again(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Codebook)
    module._seen_started = False
