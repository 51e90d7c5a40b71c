"""Checkpoints: restored bit for bit, or passed over; one file each, named by its content; never a pickle."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from pipeline.train import checkpoints
from pipeline.train.folders import DiskFolder
from vae_core.averaging import WeightAverage
from vae_core.serialize import dump_tensors

STATE = {"epoch": 1, "means": {"weight": 0.1 + 0.2}}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def make(seed: int) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    model.register_buffer("started", torch.tensor(False))
    return model, Adam(model.parameters(), lr=0.01, fused=True)


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.param_groups[0]["lr"] = 0.01 / (seed + 1)
    optimizer.step()


def bits(model: nn.Module, optimizer: Optimizer) -> dict[str, bytes]:
    moments: dict[str, Tensor] = {
        f"{i}.{name}": value for i, state in optimizer.state_dict()["state"].items() for name, value in state.items()
    }
    return {name: value.numpy().tobytes() for name, value in {**model.state_dict(), **moments}.items()}


def write(directory: Path, *steps: int, **state: int) -> None:
    for number in steps:
        model, optimizer = make(number)
        step(model, optimizer, number)
        checkpoints.save(directory, number, model, optimizer, {**STATE, **state})


def latest_step(directory: Path) -> int | None:
    found = checkpoints.latest(directory)
    return None if found is None else found.state["step"]


def best_step(directory: Path) -> int | None:
    newest = checkpoints.latest(directory)
    assert newest is not None
    found = checkpoints.best(directory, newest)
    return None if found is None else found.state["step"]


def steps(directory: Path) -> list[int]:
    return sorted(checkpoints.step_of(path.name) for path in directory.iterdir())


def file_of(directory: Path, number: int) -> Path:
    (path,) = directory.glob(f"step-{number:09d}-*.safetensors")
    return path


@pytest.mark.parametrize("before", [0, 1, 5])
def test_the_next_step_after_restoring_equals_the_uninterrupted_one(tmp_path: Path, before: int) -> None:
    model, optimizer = make(0)
    for number in range(before):
        step(model, optimizer, number)
    checkpoints.save(tmp_path, before, model, optimizer, STATE)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": before, **STATE}
    restored, its_optimizer = make(1)
    found.restore(restored, its_optimizer)
    assert bits(restored, its_optimizer) == bits(model, optimizer)
    for number in range(before, before + 3):
        step(model, optimizer, number)
        step(restored, its_optimizer, number)
    assert bits(restored, its_optimizer) == bits(model, optimizer)


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 3, 20, 100)
    assert steps(tmp_path) == [20, 100]
    assert latest_step(tmp_path) == 100


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, best_step=10)
    write(tmp_path, 30, 40, 50, best_step=20)
    assert steps(tmp_path) == [20, 40, 50]
    assert best_step(tmp_path) == 20
    write(tmp_path, 60, best_step=60)
    assert steps(tmp_path) == [50, 60]
    assert best_step(tmp_path) == 60


def test_without_validation_none_is_the_best(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert best_step(tmp_path) is None


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "absent") is None


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "missing": lambda path: path.unlink(),
    "first byte flipped": lambda path: flip(path, 0),
    "middle byte flipped": lambda path: flip(path, path.stat().st_size // 2),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "exchanged": lambda path: shutil.copy(file_of(path.parent, 1), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, 2)
    DAMAGES[damage](file_of(tmp_path, 2))
    assert latest_step(tmp_path) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path, at: float, cut: bool) -> None:
    shutil.rmtree(tmp_path)
    write(tmp_path, 1, 2)
    path = file_of(tmp_path, 2)
    content = bytearray(path.read_bytes())
    place = int(at * len(content))
    content[place] ^= 0x10
    path.write_bytes(content[:place] if cut else content)
    assert latest_step(tmp_path) == 1


def test_torn_and_strange_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "step-000000002").mkdir()
    (tmp_path / "step-000000002" / "model.safetensors").write_bytes(b"of an earlier version")
    (tmp_path / "step-000000003-0123456789abcdef.safetensors").mkdir()
    (tmp_path / "step-000000004").write_text("no checkpoint")
    (tmp_path / ".step-000000005-0123456789abcdef.safetensors.77.tmp").write_bytes(b"half")
    assert latest_step(tmp_path) == 1
    write(tmp_path, 6)
    assert latest_step(tmp_path) == 6


def test_going_on_before_damaged_checkpoints_loses_none(tmp_path: Path) -> None:
    """The run starts again before them, so what it writes must not be taken for older than they are."""
    write(tmp_path, 20, 30)
    for path in tmp_path.iterdir():
        flip(path, -1)
    assert latest_step(tmp_path) is None
    write(tmp_path, 5)
    assert latest_step(tmp_path) == 5
    write(tmp_path, 10, 15)
    assert steps(tmp_path) == [10, 15]


def test_a_step_that_is_written_again_replaces_the_former(tmp_path: Path) -> None:
    """As on a GPU, whose sums differ in their last bits."""
    write(tmp_path, 1, 2)
    write(tmp_path, 2, other=1)
    assert steps(tmp_path) == [1, 2]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.state["other"] == 1


def test_a_checkpoint_is_one_file_of_safetensors_named_by_its_content(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (path,) = tmp_path.iterdir()
    assert path.name == f"step-000000001-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.safetensors"
    model, optimizer = make(1)
    step(model, optimizer, 1)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["state"]) == {"step": 1, **STATE}
        names = set(file.keys())
    moments = {f"optimizer.{name}" for name in checkpoints._optimizer_tensors(optimizer)}
    assert names == {f"model.{name}" for name in model.state_dict()} | moments


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write(tmp_path / name, 7)
    assert file_of(tmp_path / "one", 7).read_bytes() == file_of(tmp_path / "other", 7).read_bytes()


def test_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("a pickle was read",))

    for data in (pickle.dumps(Bomb()), b"not safetensors"):
        name = f"step-000000001-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        (tmp_path / name).write_bytes(data)
        assert latest_step(tmp_path) is None


def test_a_snapshot_does_not_change_with_the_model(tmp_path: Path) -> None:
    """It is written by another thread while training goes on."""
    model, optimizer, average = averaged(0)
    step(model, optimizer, 0)
    taken = checkpoints.snapshot(1, model, optimizer, STATE, average)
    checkpoints.save(tmp_path / "before", 1, model, optimizer, STATE, average)
    step(model, optimizer, 1)
    average.update(model)  # type: ignore[arg-type]
    checkpoints.write(DiskFolder(tmp_path / "after"), taken)
    assert file_of(tmp_path / "after", 1).read_bytes() == file_of(tmp_path / "before", 1).read_bytes()


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
    assert latest_step(tmp_path) == 1
    assert steps(tmp_path) == [1]


def test_a_state_that_is_no_number_is_refused(tmp_path: Path) -> None:
    model, optimizer = make(0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.save(tmp_path, 1, model, optimizer, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def averaged(seed: int) -> tuple[nn.Module, Optimizer, WeightAverage]:
    model, optimizer = make(seed)
    return model, optimizer, WeightAverage(model, 0.9)  # type: ignore[arg-type]


def test_the_average_of_the_weights_goes_on_after_restoring(tmp_path: Path) -> None:
    model, optimizer, average = averaged(0)
    for number in range(3):
        step(model, optimizer, number)
        average.update(model)  # type: ignore[arg-type]
    checkpoints.save(tmp_path, 3, model, optimizer, STATE, average)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.state == {"step": 3, **STATE, "average_updates": 3}
    assert load(found.weights).keys() == model.state_dict().keys()
    assert not load(found.weights)["0.weight"].equal(model.state_dict()["0.weight"])
    restored, its_optimizer, its_average = averaged(1)
    found.restore(restored, its_optimizer, its_average)
    for number in range(3, 6):
        for one, its, mean in ((model, optimizer, average), (restored, its_optimizer, its_average)):
            step(one, its, number)
            mean.update(one)  # type: ignore[arg-type]
    assert bits(restored, its_optimizer) == bits(model, optimizer)
    assert bits(its_average.model, its_optimizer) == bits(average.model, optimizer)


def test_without_an_average_the_weights_are_those_of_the_last_step(tmp_path: Path) -> None:
    write(tmp_path, 1)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    model, optimizer = make(1)
    step(model, optimizer, 1)
    assert found.weights == dump_tensors(model.state_dict())
