"""The proof that the ONNX files compute what the torch model computes, on real images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.export.onnx import Part, run
from vae_core.models import Model
from vae_core.models.vqvae import VQVAE


@torch.no_grad()
def parity(model: Model, parts: dict[str, Part], folder: Path, *, tolerance: float) -> dict[str, float | int]:
    """The largest absolute differences between ONNX Runtime and torch over the inputs of `parts`.

    Codes are integers, so a tie between two codes may fall either way: what is compared is the distance from the
    encoder's output to the code that was chosen, which must be the least within the tolerance.

    Raises:
        UserError: a difference is above `tolerance`.
    """
    found: dict[str, float | int] = {}
    for name, part in parts.items():
        expected = _comparable(model, part.module(*part.inputs.values()))
        outputs = _comparable(model, run(folder / f"{name}.onnx", part.inputs))
        difference = max(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True))
        if not difference <= tolerance:
            raise UserError(
                f"{name}.onnx: differs from the torch model by {difference:.3g}, allowed is {tolerance:.3g} "
                "(params.yaml: export.tolerance); nothing was exported"
            )
        found[f"{name}_max_abs_difference"] = difference
    return {**found, "images": len(next(iter(parts["encoder"].inputs.values())))}


def _comparable(model: Model, outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A part's outputs, with each code replaced by the squared distance to it, [B, h, w]."""
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not isinstance(model, VQVAE) or len(tensors) == 1:
        return tensors
    encoded, codes = tensors
    return [encoded, (encoded - model.quantizer.lookup(codes)).square().sum(1)]
