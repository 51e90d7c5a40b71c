"""The proof that the ONNX files compute what the torch model computes, on real images."""

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

    Codes are integers, and a tie between two may fall either way: what is compared is how far the code that each chose
    lies from torch's encoder output.

    Raises:
        UserError: a difference is above `tolerance`.
    """
    found: dict[str, float | int] = {}
    for name, part in parts.items():
        expected = part.module(*part.inputs.values())
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        outputs = run(folder / f"{name}.onnx", part.inputs)
        if isinstance(model, VQVAE) and name == "encoder":
            expected[1], outputs[1] = (_distances(model, expected[0], codes) for codes in (expected[1], outputs[1]))
        difference = max(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True))
        if not difference <= tolerance:
            raise UserError(
                f"{name}.onnx: differs from the torch model by {difference:.3g}, allowed is {tolerance:.3g} "
                "(params.yaml: export.tolerance); nothing was exported"
            )
        found[f"{name}_max_abs_difference"] = difference
    return {**found, "images": len(next(iter(parts["encoder"].inputs.values())))}


def _distances(model: VQVAE, encoded: Tensor, codes: Tensor) -> Tensor:
    """[B, h, w] squared distances from encoder outputs to the codes chosen for them."""
    return (encoded - model.quantizer.lookup(codes)).square().sum(1)
