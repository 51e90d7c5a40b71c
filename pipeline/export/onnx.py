"""Encoder and decoder as ONNX files, and the proof that they compute what the torch model computes."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from pipeline import files
from vae_core.batch import Batch
from vae_core.conditioning import Known
from vae_core.models import CodeModel, Model
from vae_core.models.gaussian import GaussianModel

OPSET = 18


COLUMNS = {"label": "labels", "attributes": "attributes", "embedding": "embedding"}


@dataclass(frozen=True)
class Part:
    """One ONNX file: the torch module behind it, example inputs by name, and the names of its outputs."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def parts(model: Model, x: Tensor, batch: Batch) -> dict[str, Part]:
    """`encoder` and `decoder` of a model, with example inputs: observed pixels x [B, C, H, W] of the rows of `batch`.

    Both also take the column that the model is conditioned on, as it lies in the data.
    """
    column = COLUMNS.get(model.config.condition)
    known = {} if column is None else {column: getattr(batch, column)}
    latent = model.represent(x, model.condition(batch))
    outputs: tuple[str, ...]
    if isinstance(latent, Tensor):
        inputs, outputs = {"z": latent}, ("mean", "log_var") if isinstance(model, GaussianModel) else ("z",)
    else:
        inputs = {f"codes_{level}": codes for level, codes in enumerate(latent)}
        outputs = tuple(inputs)
    return {
        "encoder": Part(_Encoder(model, column), {"x": x, **known}, outputs),
        "decoder": Part(_Decoder(model, column, len(inputs)), {**inputs, **known}, ("pixel_mean",)),
    }


def write(part: Part, path: Path) -> None:
    """Export with a free batch size. The bytes depend on the model alone: traces and paths are left out."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which no model here uses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's own use of torch
        program = torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in part.inputs),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    files.write_bytes(path, proto.SerializeToString(deterministic=True))


def run(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of an ONNX file under ONNX Runtime, on the CPU."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(np.asarray(output)) for output in outputs]


class _Given(nn.Module):
    """Part of a model, given the column that it is conditioned on."""

    def __init__(self, model: Model, column: str | None) -> None:
        super().__init__()
        self.model, self.column = model, column

    def condition(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """The column comes last."""
        return None if self.column is None else self.model.condition(Known(**{self.column: inputs[-1]}))


class _Encoder(_Given):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x, c = inputs[0], self.condition(inputs)
        if isinstance(self.model, GaussianModel):
            posterior = self.model.encode(x, c)
            return posterior.mean, posterior.log_var
        latent = self.model.represent(x, c)
        return (latent,) if isinstance(latent, Tensor) else latent


class _Decoder(_Given):
    def __init__(self, model: Model, column: str | None, levels: int) -> None:
        super().__init__(model, column)
        self.levels = levels

    def forward(self, *inputs: Tensor) -> Tensor:
        latent = inputs[: self.levels] if isinstance(self.model, CodeModel) else inputs[0]
        mean: Tensor = self.model.decode(latent, self.condition(inputs)).mean
        return mean


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what tells where and how the file was made."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
