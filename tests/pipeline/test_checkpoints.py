"""Checkpoints: restored bit for bit, or passed over; never a pickle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from pipeline.train import checkpoints
from vae_core.averaging import WeightAverage

STATE = {"epoch": 1, "means": {"weight": 0.1 + 0.2}}


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


def write(directory: Path, *steps: int) -> None:
    for number in steps:
        model, optimizer = make(number)
        step(model, optimizer, number)
        checkpoints.save(directory, number, model, optimizer, STATE)


def latest_step(directory: Path) -> int | None:
    found = checkpoints.latest(directory)
    return None if found is None else found.state["step"]


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000020", "step-000000100"]
    assert latest_step(tmp_path) == 100


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "absent") is None


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


NAMES = ("model.safetensors", "optimizer.safetensors", "state.json", "digests.json")
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "missing": lambda path: path.unlink(),
    "first byte flipped": lambda path: flip(path, 0),
    "middle byte flipped": lambda path: flip(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "step-000000002" / name)
    assert latest_step(tmp_path) == 1


def test_torn_directories_and_strangers_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step-000000001", tmp_path / "step-000000002", ignore=lambda *_: ["digests.json"])
    (tmp_path / "step-000000003").mkdir()
    (tmp_path / "step-000000004").write_text("no directory")
    assert latest_step(tmp_path) == 1


def test_going_on_before_damaged_checkpoints_loses_none(tmp_path: Path) -> None:
    """The run starts again before them, so what it writes must not be taken for older than they are."""
    write(tmp_path, 20, 30)
    for path in tmp_path.iterdir():
        flip(path / "model.safetensors", -1)
    assert latest_step(tmp_path) is None
    write(tmp_path, 5)
    assert latest_step(tmp_path) == 5
    write(tmp_path, 10, 15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000015"]


def test_a_checkpoint_is_safetensors_and_json(tmp_path: Path) -> None:
    write(tmp_path, 1)
    folder = tmp_path / "step-000000001"
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert load((folder / "model.safetensors").read_bytes()).keys() == make(1)[0].state_dict().keys()
    assert "0.exp_avg_sq" in load((folder / "optimizer.safetensors").read_bytes())
    assert json.loads((folder / "state.json").read_text())["step"] == 1
    assert set(json.loads((folder / "digests.json").read_text())) == set(NAMES) - {"digests.json"}


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.files.sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert latest_step(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


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
    assert found.weights == (found.path / "model.safetensors").read_bytes()


def test_a_damaged_average_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    checkpoints.save(tmp_path, 2, *averaged(0)[:2], STATE, averaged(0)[2])
    flip(tmp_path / "step-000000002" / "average.safetensors", -1)
    assert latest_step(tmp_path) == 1
