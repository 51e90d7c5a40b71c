"""The proof that the ONNX files compute what the torch model computes, on real images."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.export.onnx import Part, run

CODES_ALLOWED = 1e-3  # of the codes may differ: a distance that ties may fall either way


@torch.no_grad()
def parity(parts: dict[str, Part], folder: Path, *, tolerance: float) -> dict[str, float | int]:
    """How ONNX Runtime and torch differ over the inputs of `parts`: the largest absolute difference of numbers, or the
    share of codes, which are whole numbers, that are not the same.

    Raises:
        UserError: a difference is above `tolerance`, or more than one code in a thousand differs.
    """
    found: dict[str, float | int] = {}
    for name, part in parts.items():
        expected = part.module(*part.inputs.values())
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        outputs = run(folder / f"{name}.onnx", part.inputs)
        whole = not expected[0].is_floating_point()
        measured = _share_differing if whole else _max_difference
        difference, allowed = measured(outputs, expected), CODES_ALLOWED if whole else tolerance
        figure = f"{name}_{'differing_codes_fraction' if whole else 'max_abs_difference'}"
        if not difference <= allowed:
            raise UserError(
                f"{name}.onnx: differs from the torch model: {figure} {difference:.3g}, allowed is {allowed:.3g} "
                "(params.yaml: export.tolerance); nothing was exported"
            )
        found[figure] = difference
    return {**found, "images": len(next(iter(parts["encoder"].inputs.values())))}


def _max_difference(outputs: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True))


def _share_differing(outputs: list[Tensor], expected: list[Tensor]) -> float:
    differing = sum(int((a != b).sum()) for a, b in zip(outputs, expected, strict=True))
    return differing / sum(each.numel() for each in expected)
