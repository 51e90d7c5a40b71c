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
from vae_core.models import Model
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE

OPSET = 18


@dataclass(frozen=True)
class Part:
    """One ONNX file: the torch module behind it, example inputs by name, and the names of its outputs."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def parts(model: Model, x: Tensor, labels: Tensor | None) -> dict[str, Part]:
    """`encoder` and `decoder` of a model, with example inputs from observed pixels x [B, C, H, W]."""
    if isinstance(model, VQVAE):
        codes = model.quantizer.nearest(model.encode(x))
        return {
            "encoder": Part(_QuantizedEncoder(model), {"x": x}, ("encoded", "codes")),
            "decoder": Part(_QuantizedDecoder(model), {"codes": codes}, ("pixel_mean",)),
        }
    condition = {} if model.condition is None or labels is None else {"labels": labels}
    z = model.encode(x, labels).mean
    return {
        "encoder": Part(_Encoder(model), {"x": x, **condition}, ("mean", "log_var")),
        "decoder": Part(_Decoder(model), {"z": z, **condition}, ("pixel_mean",)),
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
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in part.inputs),
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


class _Encoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(x, labels)
        return posterior.mean, posterior.log_var


class _Decoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model.decode(z, labels).mean


class _QuantizedEncoder(nn.Module):
    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.model.encode(x)
        return encoded, self.model.quantizer.nearest(encoded)


class _QuantizedDecoder(nn.Module):
    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes).mean


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what tells where and how the file was made."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
