"""Codebooks by hand, and encoder outputs to feed them."""

from typing import Any, cast

import torch
from core_models import noise_for, vqvae
from torch import Tensor

from vae_core.noise import Noise
from vae_core.quantize import Codebook, Quantized, build_quantizer


def quantizer(
    codes: Tensor | None = None,
    *,
    num_codes: int = 4,
    code_dim: int = 2,
    decay: float = 0.9,
    restart: float = 0.05,
    kind: str = "ema",
    **fields: Any,
) -> Codebook:
    """A codebook that has started, with these codes; without codes, a new one."""
    if codes is not None:
        num_codes, code_dim = codes.shape
    config = vqvae(
        num_codes=num_codes, code_dim=code_dim, ema_decay=decay, restart_below=restart, codebook=kind, **fields
    )
    made = cast(Codebook, build_quantizer(config))
    if codes is not None:
        with torch.no_grad():
            made.codebook.copy_(codes)
        made.started.fill_(True)
    return made


def grid(vectors: Tensor) -> Tensor:
    """[B, P, D] -> [B, D, P, 1], the layout of an encoder's output."""
    return vectors.movedim(-1, 1)[..., None]


def random_grid(rows: int, dim: int, side: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, side, side, generator=torch.Generator().manual_seed(seed))


def update(made: Codebook, z: Tensor, *, step: int = 0, weight: Tensor | None = None) -> Tensor:
    found = made(z)
    follow(made, found, torch.ones(len(z)) if weight is None else weight, noise_for(len(z), step=step))
    return cast(Quantized, found).codes


def follow(
    made: Codebook, found: Quantized, weight: Tensor, noise: Noise, *, taken: bool = True, **options: Any
) -> None:
    """Let the codes follow what they were chosen for."""
    made.update(found.encoded, found.codes, weight, noise, torch.tensor(taken), **options)


def vectors_of(z: Tensor) -> Tensor:
    """[B, D, h, w] -> [B * h * w, D]."""
    return z.movedim(1, -1).flatten(0, -2)


def is_row_of(rows: Tensor, table: Tensor) -> Tensor:
    return (rows[:, None] == table[None]).all(-1).any(1)
