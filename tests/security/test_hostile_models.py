"""Models, checkpoints and what is exported: weights that lie about themselves are one line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save
from strangers import SECRET, bounded

from pipeline.errors import UserError
from pipeline.export.onnx import run
from pipeline.train import checkpoints, storage
from pipeline.train.folders import open_folder
from pipeline.train.tracking import MetricLog
from vae_core.config import DataSpec, MLPConfig, VAEConfig
from vae_core.models import Model, build_model
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, describe, dump_tensors, load_model
from vae_core.training import make_optimizer

MODEL = VAEConfig(kind="vae", latent_dim=2, network=MLPConfig(kind="mlp", hidden=(4,)))
DATA = DataSpec(channels=1, height=4, width=4)


def small() -> Model:
    return build_model(MODEL, DATA, seed=0)


def weights() -> dict[str, torch.Tensor]:
    return dict(small().state_dict())


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(change: Callable[[dict[str, Any]], object]) -> bytes:
    found, rest = header(dump_tensors(weights()))
    change(found)
    text = json.dumps(found).encode()
    return struct.pack("<Q", len(text)) + text + rest


def first(found: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = found[min(found)]
    return value


LYING: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "header longer than the file": lambda: struct.pack("<Q", 2**40) + b"{}",
    "header of 2^64 bytes": lambda: b"\xff" * 8 + b"{}",
    "huge header": lambda: struct.pack("<Q", 101 * 10**6) + b" " * (101 * 10**6),
    "deep header": lambda: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no JSON": lambda: struct.pack("<Q", 4) + b"abcd",
    "a list": lambda: struct.pack("<Q", 2) + b"[]",
    "overlapping tensors": lambda: with_header(lambda h: [t.update(data_offsets=[0, 8]) for t in h.values()]),
    "offsets beyond the file": lambda: with_header(lambda h: first(h).update(data_offsets=[0, 2**40])),
    "offsets backwards": lambda: with_header(lambda h: first(h).update(data_offsets=[8, 0])),
    "negative shape": lambda: with_header(lambda h: first(h).update(shape=[-1])),
    "overflowing shape": lambda: with_header(lambda h: first(h).update(shape=[2**62, 2**62])),
    "unknown type": lambda: with_header(lambda h: first(h).update(dtype="PICKLE")),
    "cut": lambda: dump_tensors(weights())[:-8],
    "longer": lambda: dump_tensors(weights()) + bytes(8),
    "an extra tensor": lambda: dump_tensors({**weights(), "../../x": torch.zeros(1)}),
    "a tensor less": lambda: dump_tensors(dict(list(weights().items())[1:])),
    "another shape": lambda: dump_tensors({name: value[..., None] for name, value in weights().items()}),
    "double precision": lambda: dump_tensors({name: value.double() for name, value in weights().items()}),
    "integers": lambda: dump_tensors({name: value.long() for name, value in weights().items()}),
}


@pytest.mark.parametrize("case", LYING)
def test_weights_that_lie_are_refused(home: Path, case: str) -> None:
    (home / WEIGHTS).write_bytes(LYING[case]())
    (home / CONFIG).write_text(json.dumps(describe(MODEL, DATA)))
    with bounded(400, 5), pytest.raises(ModelFileError, match=WEIGHTS):
        load_model(home)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "9" * 10_000, "[]", "{}", '{"model": 1, "data": 2}',
        '{"model": {"kind": "os.system"}, "data": {}}',
        json.dumps({**describe(MODEL, DATA), "data": {"channels": 2**62, "height": 2**62, "width": 2**62}}),
        json.dumps({**describe(MODEL, DATA), "data": {"channels": 1, "height": "x", "width": 4}}),
    ],
)  # fmt: skip
def test_a_configuration_that_lies_is_refused(home: Path, text: str) -> None:
    (home / WEIGHTS).write_bytes(dump_tensors(weights()))
    (home / CONFIG).write_text(text)
    with bounded(100, 5), pytest.raises(ModelFileError):
        load_model(home)


def put(folder: Path, data: bytes, step: int = 7) -> str:
    """A checkpoint whose name fits its content."""
    name = f"step-{step:09d}-{checkpoints._digest(data)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name


STATES = ["[" * 100_000, "9" * 10_000, "null", "[]", "1", "{}", '{"step": 8}', '{"step": "7"}', '{"step": null}', "{"]


@pytest.mark.parametrize("state", STATES)
def test_a_checkpoint_whose_state_is_none_is_passed_over(home: Path, state: str) -> None:
    put(home / "checkpoints", save({"model.x": torch.zeros(1)}, {"state": state}))
    with bounded(50, 5):
        assert checkpoints.latest(home / "checkpoints") is None


@pytest.mark.parametrize("case", [case for case in LYING if case != "huge header"])
def test_a_checkpoint_that_lies_is_passed_over_or_refused(home: Path, case: str) -> None:
    put(home / "checkpoints", LYING[case]())
    with bounded(400, 5):
        assert checkpoints.latest(home / "checkpoints") is None


def snapshot(**changes: torch.Tensor) -> bytes:
    model = small()
    optimizer = make_optimizer(model, learning_rate=0.1)
    model.represent(torch.zeros(2, 1, 4, 4), None).sum().backward()  # type: ignore[union-attr]
    optimizer.step()
    whole = checkpoints.snapshot(7, model, optimizer, {})
    return save({**whole.tensors, **changes}, {"state": json.dumps(whole.state)})


def restored(folder: Path) -> None:
    found = checkpoints.latest(folder)
    assert found is not None
    with checkpoints.fitting(open_folder(folder), found):
        model = small()
        found.restore(model, make_optimizer(model, learning_rate=0.1))


@pytest.mark.parametrize(
    "changes",
    [
        {"model.extra": torch.zeros(1)},
        {"optimizer.0.exp_avg": torch.zeros(3, 3)},
        {"optimizer.99.exp_avg": torch.zeros(1)},
        {"optimizer.-99.exp_avg": torch.zeros(1)},
        {"optimizer.x.exp_avg": torch.zeros(1)},
        {"optimizer.nothing": torch.zeros(1)},
    ],
)
def test_a_checkpoint_of_another_model_is_named(home: Path, changes: dict[str, torch.Tensor]) -> None:
    put(home / "sound", snapshot())
    restored(home / "sound")
    put(home / "checkpoints", snapshot(**changes))
    with pytest.raises(UserError, match=r"/step-0+7-\w+\.safetensors: not a checkpoint of this run \([^\n]*$"):
        restored(home / "checkpoints")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "checkpoints/../../secret", 7, [], {"a": 1}, True])
def test_a_finished_run_names_no_file_outside_its_folder(home: Path, name: object) -> None:
    (home / "run").mkdir()
    (home / "run" / "finished.json").write_text(json.dumps({"checkpoint": name}))
    assert storage.is_finished(home / "run") is False
    for text in ("{}", "[" * 100_000, "9" * 10_000, "null"):
        (home / "run" / "finished.json").write_text(text)
        assert storage.is_finished(home / "run") is False


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 10_000, "1", "[]", "{}", '{"step": 1}', "\x1b[2J"])
def test_a_log_with_lines_that_are_none_is_damaged(home: Path, line: str) -> None:
    (home / "run").mkdir()
    (home / "run" / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: a damaged line; `python -m pipeline runs repair` mends it$"):
        MetricLog(home / "run").rows()


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "../../../../etc/passwd", "{secret}"])
def test_a_network_cannot_take_its_weights_from_another_file(home: Path, location: str) -> None:
    location = location.format(secret=home.parent / "secret")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[40])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [40])
    graph = onnx.helper.make_graph([node], "g", [], [out], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (home / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=r"(?i)external|not.*allowed|escapes|model_path|path") as error:
        run(home / "x.onnx", {})
    assert SECRET.decode() not in str(error.value)


def test_a_network_with_operators_of_its_own_is_refused(home: Path) -> None:
    node = onnx.helper.make_node("Run", ["x"], ["y"], domain="os.system")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("os.system", 1)], ir_version=10
    )
    (home / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=r"os\.system"):
        run(home / "x.onnx", {"x": torch.from_numpy(np.zeros(1, np.float32))})
