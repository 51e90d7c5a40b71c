"""The training loop: one function, the same result however often it is broken off and wherever it runs."""

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from pipeline import files
from pipeline.config import ComputeConfig
from pipeline.data.loader import Split, open_split
from pipeline.errors import Diverged, StorageFailed, UserError
from pipeline.train import checkpoints, learner, loop
from pipeline.train.folders import DiskFolder, Folder
from pipeline.train.following import follow
from pipeline.train.leaving import Watch
from pipeline.train.loop import build, train
from pipeline.train.publish import publish_model
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog
from pipeline.train.worker import fit
from vae_core import distributed
from vae_core.batch import Batch
from vae_core.config import ConvConfig, ModelConfig, RampConfig, VQVAEConfig
from vae_core.metrics.primary import primary
from vae_core.models.vae import VAE
from vae_core.normal import kl
from vae_core.serialize import dump_tensors, load_model
from vae_core.training import Step, make_optimizer, train_step

FAMILIES = ("autoencoder", "vae", "cvae", "iwae", "vqvae", "vqvae2", "categorical", "hierarchical")
COMPILER = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
STEPS = 10  # an epoch
END = 20


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not need the disk to have it."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def go(run: TrainRun, directory: Path, **options: Any) -> list[tuple[int, dict[str, float]]]:
    """Train in this process; returns what `on_epoch` was told."""
    told: list[tuple[int, dict[str, float]]] = []
    keywords = {"on_epoch": lambda *epoch: told.append(epoch), "checkpoint_every_steps": 4, **options}
    train(run, directory, **keywords)
    return told


def outcome(directory: Path) -> dict[str, bytes]:
    """Every byte of the final checkpoint, and every row of figures."""
    (newest,) = (directory / "checkpoints").glob(f"step-{END:09d}-*")
    return {"checkpoint": newest.read_bytes(), "rows": (directory / "metrics.jsonl").read_bytes()}


def tensors(directory: Path, step: int = END) -> dict[str, Tensor]:
    """Those of a checkpoint, by their names with the part that they belong to."""
    (path,) = (directory / "checkpoints").glob(f"step-{step:09d}-*")
    return load(path.read_bytes())


def same(left: dict[str, Tensor], right: dict[str, Tensor], *parts: str) -> bool:
    """Whether the tensors of these parts are the same bits."""
    names = [name for name in left if name.startswith(parts)]
    assert names
    return all(torch.equal(left[name], right[name]) for name in names)


@contextmanager
def killed(function: str, call: int) -> Any:
    """Break the block off at the nth call of a function of the loop, or of those that it calls."""
    owner, name = {"train_step": learner, "write": checkpoints}.get(function, loop), function
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def counted(*args: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **keywords)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(owner, name, counted)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("family", FAMILIES)
def test_training_learns(family: str, trained: Mapping[str, Path]) -> None:
    rows = MetricLog(trained[family]).rows()
    assert [(row["step"], row["epoch"], row["samples"], row["split"]) for row in rows] == [
        (10, 0, 1163, "train"), (10, 0, 1163, "val"), (20, 1, 2326, "train"), (20, 1, 2326, "val")]  # fmt: skip
    for split in ("train", "val"):
        first, last = (row[primary(row)] for row in rows if row["split"] == split)
        assert last < first
    for row in rows:
        assert ("neg_elbo_nats" in row) is ("rate_nats" in row) is (family != "autoencoder")
        if "neg_elbo_nats" in row:
            assert row["neg_elbo_nats"] == pytest.approx(row["distortion_nats"] + row["rate_nats"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_run_gives_the_same_bytes(
    family: str, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    torch.manual_seed(5)  # what the global generator holds does not matter
    go(make_run(family), tmp_path)
    assert outcome(tmp_path) == outcome(trained[family])


@pytest.mark.parametrize("family", ["vae", "vqvae"])
def test_another_seed_gives_another_result(
    family: str, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    go(make_run(family, seed=1), tmp_path)
    assert not same(tensors(tmp_path), tensors(trained[family]), "model.")
    assert outcome(tmp_path)["rows"] != outcome(trained[family])["rows"]


KILLS = [*product(("vae", "vqvae"), (1, 4, 5, 10, 11, 17, 20)), *((family, 7) for family in FAMILIES)]


@pytest.mark.parametrize(("family", "call"), KILLS)
def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(
    family: str, call: int, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with killed("train_step", call):
        go(make_run(family), tmp_path)
    go(make_run(family), tmp_path)
    assert outcome(tmp_path) == outcome(trained[family])


@pytest.mark.parametrize(
    ("function", "call"), [("evaluate", 1), ("evaluate", 2), ("write", 1), ("write", 3), ("write", 6)]
)
def test_a_run_killed_between_steps_resumes_to_the_same_bytes(
    function: str, call: int, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with killed(function, call):
        go(make_run("vqvae"), tmp_path)
    go(make_run("vqvae"), tmp_path)
    assert outcome(tmp_path) == outcome(trained["vqvae"])


def test_a_run_killed_again_and_again_gets_there(
    trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    for _ in range(20 // 3):
        with killed("train_step", 4):
            go(make_run("vqvae"), tmp_path, checkpoint_every_steps=1)
    go(make_run("vqvae"), tmp_path, checkpoint_every_steps=1)
    assert outcome(tmp_path) == outcome(trained["vqvae"])


def test_a_run_whose_newest_checkpoint_was_damaged_resumes_from_the_one_before(
    trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with killed("train_step", 18):
        go(make_run("vqvae"), tmp_path)
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.state["step"] == 16
    (tmp_path / "checkpoints" / newest.name).write_bytes(b"torn")
    go(make_run("vqvae"), tmp_path)
    assert outcome(tmp_path) == outcome(trained["vqvae"])


def test_rows_in_the_middle_of_an_epoch_survive_a_kill(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 3)
    go(make_run(), tmp_path / "whole")
    with killed("train_step", 8):
        go(make_run(), tmp_path / "killed")
    go(make_run(), tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    steps = [row["step"] for row in MetricLog(tmp_path / "whole").rows() if row["split"] == "train"]
    assert steps == [3, 6, 9, 10, 12, 15, 18, 20]


def test_how_often_checkpoints_are_written_changes_nothing(
    trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    go(make_run("vae"), tmp_path, checkpoint_every_steps=1000)
    assert outcome(tmp_path) == outcome(trained["vae"])


@pytest.mark.parametrize("epochs", [None, 1])
def test_each_epoch_is_reported_once_and_the_last_when_its_checkpoint_is_on_disk(
    epochs: int | None, make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    def report(epoch: int, figures: dict[str, float]) -> None:
        newest = checkpoints.latest(tmp_path / "checkpoints")
        told.append((epoch, figures, newest.state["step"] if newest else 0))

    told: list[tuple[int, dict[str, float], int]] = []
    go(make_run(), tmp_path, on_epoch=report, epochs=epochs)
    assert [(epoch, figures) for epoch, figures, _ in told] == list(enumerate(MetricLog(tmp_path).epochs()))
    assert len(told) == (epochs or 2)
    assert told[-1][2] == STEPS * len(told)


def test_finished_epochs_are_reported_again_after_a_kill(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    with killed("train_step", 13):
        go(make_run(), tmp_path)
    (first,) = MetricLog(tmp_path).epochs()
    told = go(make_run(), tmp_path)
    assert told == list(enumerate(MetricLog(tmp_path).epochs()))
    assert told[0] == (0, first)


def test_a_finished_run_trains_nothing_and_reports_all(
    trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(trained["vae"], tmp_path / "run"))
    monkeypatch.setattr(learner, "train_step", None)
    assert go(make_run(), directory) == list(enumerate(MetricLog(trained["vae"]).epochs()))
    assert outcome(directory) == outcome(trained["vae"])


def test_a_run_that_pauses_after_an_epoch_goes_on_to_the_same_bytes(
    trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    assert len(go(make_run("cvae"), tmp_path, epochs=1)) == 1
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.state["step"] == STEPS
    go(make_run("cvae"), tmp_path)
    assert outcome(tmp_path) == outcome(trained["cvae"])


def test_a_checkpoint_names_the_place_in_the_data(trained: Mapping[str, Path]) -> None:
    newest = checkpoints.latest(trained["vae"] / "checkpoints")
    assert newest is not None
    assert (newest.state["step"], newest.state["means"], newest.state["best_step"]) == (20, {}, 20)
    assert (newest.state["loader"]["epoch"], newest.state["loader"]["step"]) == (2, 0)
    assert newest.state.keys() == {"step", "loader", "means", "skipped", "best_step"}


def test_validation_figures_are_those_of_every_row_once(
    models: Mapping[str, ModelConfig], make_run: Callable[..., TrainRun]
) -> None:
    """Against a plain loop over single images; the rate of a Gaussian likelihood's model needs no noise."""
    run = make_run(replace(models["vae"], likelihood="gaussian"))
    split = open_split(run.shards, "val")
    model = build(run, split.spec).eval()
    means = loop.evaluate(model, loop._loader(split, run), seed=0, device=torch.device("cpu"))
    assert isinstance(model, VAE)
    rates = []
    with torch.no_grad():
        for row in range(len(split)):
            x = torch.from_numpy(split.images(np.array([row]))).movedim(-1, 1).float() / 255
            rates.append(kl(model.encode(x, None)).item())
    assert means["rate_nats"] == pytest.approx(math.fsum(rates) / len(split), rel=1e-6)


def spoiled(
    steps: Sequence[int], monkeypatch: pytest.MonkeyPatch, *, rows: Sequence[int] = (), gradient: bool = False
) -> None:
    """The losses of `rows`, or the gradient, of the steps with these numbers are not finite."""

    def step(model: nn.Module, batch: Batch, *args: Any, forward: Any, **keywords: Any) -> Step:
        def broken(model: nn.Module, inputs: Any) -> Any:
            output, terms = forward(model, inputs)
            loss = terms.loss.clone()
            loss[list(rows)] *= float("nan")
            if gradient:
                loss = loss + 0 * (loss - loss.detach()).sqrt()  # finite itself
            return output, replace(terms, loss=loss)

        return train_step(model, batch, *args, forward=broken if next(count) in steps else forward, **keywords)

    count = iter(range(1, 1000))
    monkeypatch.setattr(learner, "train_step", step)


def test_a_skipped_step_is_counted_and_changes_nothing(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither weights, optimizer nor the means of the epoch, which go on without it."""
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    spoiled([3, 14], monkeypatch, rows=[5])
    assert len(go(make_run(), tmp_path, checkpoint_every_steps=1)) == 2
    rows = [row for row in MetricLog(tmp_path).rows() if row["split"] == "train"]
    assert [row.get("skipped_steps", 0) for row in rows] == [0] * 2 + [1] * 11 + [2] * 7
    assert rows[1]["neg_elbo_nats"] == rows[2]["neg_elbo_nats"] != rows[3]["neg_elbo_nats"]
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.state["skipped"] == 2


def test_the_weights_of_a_skipped_step_are_those_before_it(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled([20], monkeypatch, gradient=True)
    go(make_run("vqvae"), tmp_path, checkpoint_every_steps=19)
    assert same(tensors(tmp_path, 19), tensors(tmp_path, 20), "model.", "optimizer.")


def test_skipped_steps_are_counted_over_a_kill(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled([3, 5], monkeypatch, rows=[0])
    with killed("train_step", 15):
        go(make_run(), tmp_path / "killed")
    monkeypatch.undo()
    go(make_run(), tmp_path / "killed")
    spoiled([3, 5], monkeypatch, rows=[0])
    go(make_run(), tmp_path / "whole")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_past_the_limit_of_skipped_steps_the_samples_are_named(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled([2, 4, 12], monkeypatch, rows=[7, 90])
    run = make_run(max_skipped_steps=2)
    with pytest.raises(Diverged) as error:
        go(run, tmp_path)
    named = loop._loader(run.open("train"), run).ids(1, 1, np.array([7, 90]))
    assert all(name.startswith("digits-") for name in named)
    assert str(error.value) == (
        "step 12: loss or gradient not finite, 3 steps skipped (train.max_skipped_steps in params.yaml allows 2); "
        f"the loss of sample {named[0]}, {named[1]} is not finite; "
        "lower train.learning_rate or train.max_grad_norm, or look at these samples"
    )


def test_a_gradient_that_is_not_finite_under_finite_losses_is_told_as_such(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled([2], monkeypatch, gradient=True)
    with pytest.raises(Diverged, match=r"^step 2: .* allows 0\); every loss is finite; lower train.learning_rate"):
        go(make_run(max_skipped_steps=0), tmp_path)


def test_an_epoch_in_which_every_step_is_skipped_is_no_end(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(range(11, 21), monkeypatch, rows=[0])
    first, second = (figures for _, figures in go(make_run(), tmp_path))
    assert first == second, "the weights did not change"
    assert MetricLog(tmp_path).rows()[2] == {"step": 20, "epoch": 1, "samples": 2326, "split": "train",
                                             "skipped_steps": 10}  # fmt: skip
    with follow(tmp_path, what="t", total_steps=20):
        pass


def test_a_run_that_diverged_names_the_remedy(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"^step 10: val: distortion_nats is \w+, .* 9 steps skipped; lower train.lear"):
        go(make_run(learning_rate=1e12), tmp_path)


def test_the_average_of_the_weights_is_what_is_judged_and_published(
    make_run: Callable[..., TrainRun], tmp_path: Path, trained: Mapping[str, Path]
) -> None:
    run = make_run("vqvae", ema_decay=0.9)
    told = go(run, tmp_path / "run")
    newest = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.state["average_updates"] == 20
    assert same(newest.tensors, tensors(trained["vqvae"]), "model.", "optimizer."), "averaging changes no training"
    publish_model(run, tmp_path / "run", tmp_path / "model")
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    averaged = {
        name.replace("average.", "model."): newest.tensors[name] for name in newest.tensors if "average" in name
    }
    assert weights == newest.weights == dump_tensors({name[6:]: tensor for name, tensor in averaged.items()})
    assert not same(averaged, newest.tensors, "model.")
    split = run.open("val")
    found = loop.evaluate(load_model(tmp_path / "model"), loop._loader(split, run), seed=0, device=torch.device("cpu"))
    assert found == told[-1][1] == files.read_json(tmp_path / "model" / "metrics.json")["val"]
    assert found != MetricLog(trained["vqvae"]).epochs()[-1]


@pytest.mark.parametrize("call", [4, 5, 13])
def test_a_killed_run_that_averages_resumes_to_the_same_bytes(
    call: int, make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    go(make_run("vqvae", ema_decay=0.9), tmp_path / "whole")
    with killed("train_step", call):
        go(make_run("vqvae", ema_decay=0.9), tmp_path / "killed")
    go(make_run("vqvae", ema_decay=0.9), tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_learning_rate_is_a_number_or_a_schedule(
    make_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def step(*args: Any, learning_rate: float, **keywords: Any) -> Step:
        rates.append(learning_rate)
        return train_step(*args, learning_rate=learning_rate, **keywords)

    monkeypatch.setattr(learner, "train_step", step)
    go(make_run(learning_rate=0.003), tmp_path / "number")
    assert rates == [0.003] * 20
    rates.clear()
    go(make_run(learning_rate=RampConfig(kind="linear", start=0.002, end=0.001, until=0.5)), tmp_path / "schedule")
    assert rates == pytest.approx([0.002 - 0.0001 * min(step, 10) for step in range(20)])


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_trains_nearly_alike(
    family: str, make_run: Callable[..., TrainRun], tmp_path: Path, trained: Mapping[str, Path]
) -> None:
    go(make_run(family, precision="bf16"), tmp_path)
    ours, exact = MetricLog(tmp_path).epochs()[-1], MetricLog(trained[family]).epochs()[-1]
    assert ours != exact
    assert ours[primary(ours)] == pytest.approx(exact[primary(exact)], rel=0.02)
    assert {value.dtype for value in tensors(tmp_path).values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")
@pytest.mark.skipif(" " in torch.__file__, reason="torch's compiler cannot link in a folder with a space in its name")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_step_trains_alike(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """In batches of the whole split: each other size would be compiled anew."""
    for name in ("off", "on"):
        go(make_run("vae", compile=name, global_batch_size=1163, learning_rate=0.002), tmp_path / name)
    ours, eager = (MetricLog(tmp_path / name).rows() for name in ("on", "off"))
    for one, other in zip(ours, eager, strict=True):
        assert one["neg_elbo_nats"] == pytest.approx(other["neg_elbo_nats"], rel=1e-4)


# What goes on beside the steps


def speed_rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "speed.jsonl").read_text().splitlines()]


def test_an_epoch_leaves_a_row_of_its_speed(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """In a file of its own: what is a result is the same each time."""
    go(make_run("vqvae"), tmp_path)
    rows = speed_rows(tmp_path)
    assert [(row["epoch"], row["step"], row["workers"]) for row in rows] == [(0, 10, 1), (1, 20, 1)]
    for row in rows:
        shares = [row[name] for name in ("data", "compute", "communication", "checkpoint", "evaluation")]
        assert sum(shares) == pytest.approx(1)
        assert all(share >= 0 for share in shares)
        assert row["communication"] == 0 < row["compute"]
        training = row["seconds"] * (row["data"] + row["compute"])
        assert row["images_per_s"] == pytest.approx(1163 / training)
        assert row["peak_memory_bytes"] > 2**20


def test_the_images_of_a_resumed_epoch_are_counted_from_where_it_goes_on(
    make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with killed("train_step", 17):
        go(make_run(), tmp_path)
    go(make_run(), tmp_path)
    row = speed_rows(tmp_path)[-1]
    assert row["images_per_s"] * row["seconds"] * (row["data"] + row["compute"]) == pytest.approx(1163 - 6 * 128)


def test_a_node_about_to_go_has_a_checkpoint_on_disk_before_the_next_step(
    make_run: Callable[..., TrainRun], trained: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was asked changes no result."""
    monkeypatch.setattr("pipeline.train.leaving.EVERY_S", 0.0)  # after each step
    asked = 0

    def leaving() -> bool:
        nonlocal asked
        asked += 1
        return asked in (3, 13)

    def step(*args: Any, **keywords: Any) -> Step:
        newest = checkpoints.latest(tmp_path / "checkpoints")
        on_disk.append(newest.state["step"] if newest else 0)
        return train_step(*args, **keywords)

    on_disk: list[int] = []
    monkeypatch.setattr(learner, "train_step", step)
    go(make_run(), tmp_path, checkpoint_every_steps=1000, leaving=leaving)
    assert asked == 18, "after each step but the last of an epoch, which writes a checkpoint anyway"
    assert on_disk[3:5] == [3, 3]
    assert on_disk[14:16] == [14, 14]
    assert outcome(tmp_path) == outcome(trained["vae"])


def test_it_is_asked_more_seldom_the_faster_steps_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for seconds, expected in ((0.01, [1, 101, 201]), (0.5, [1, 11, 21, 31]), (60.0, [1, 2, 3, 4])):
        answers = [False] * len(expected)
        watch, asked = Watch(answers.pop, 0), []
        for step in range(1, expected[-1] + 1):
            now += seconds
            before = len(answers)
            assert not watch.is_leaving(step)
            asked += [step] * (before - len(answers))
        assert asked == expected


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_the_one_before(
    make_run: Callable[..., TrainRun], trained: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: DiskFolder, name: str, data: bytes) -> None:
        if name.startswith("step-000000010"):
            raise StorageFailed("no room")
        write(self, name, data)

    write = DiskFolder.write
    monkeypatch.setattr(DiskFolder, "write", full)
    with pytest.raises(StorageFailed, match=r"^no room$"):
        go(make_run(), tmp_path)
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.state["step"] == 8
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    go(make_run(), tmp_path)
    assert outcome(tmp_path) == outcome(trained["vae"])


def test_training_goes_on_while_a_checkpoint_is_written(
    make_run: Callable[..., TrainRun], trained: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And changes nothing of what is written: the first is held back until five more steps are done."""
    stepped, write = threading.Event(), checkpoints.write
    names: list[str] = []

    def late(folder: Folder, snapshot: checkpoints.Snapshot) -> None:
        assert stepped.wait(30)
        write(folder, snapshot)
        names.extend(folder.names("step-000000004"))

    def step(*args: Any, **keywords: Any) -> Step:
        done = train_step(*args, **keywords)
        if next(count) == 8:
            stepped.set()
        return done

    count = iter(range(1, 100))
    go(make_run("vqvae"), tmp_path / "plain", epochs=1)
    monkeypatch.setattr(checkpoints, "write", late)
    monkeypatch.setattr(learner, "train_step", step)
    go(make_run("vqvae"), tmp_path / "late")
    assert outcome(tmp_path / "late") == outcome(trained["vqvae"])
    with killed("train_step", 5):
        go(make_run("vqvae"), tmp_path / "killed")
    assert names[0] in os.listdir(tmp_path / "killed" / "checkpoints"), "its name is that of its content"


@pytest.mark.parametrize("family", ["vae", "vqvae", "categorical"])
def test_rows_that_pass_in_parts_train_alike(
    family: str, make_run: Callable[..., TrainRun], tmp_path: Path, trained: Mapping[str, Path]
) -> None:
    go(make_run(family), tmp_path, max_rows=50)
    for one, other in zip(MetricLog(tmp_path).rows(), MetricLog(trained[family]).rows(), strict=True):
        assert one["neg_elbo_nats"] == pytest.approx(other["neg_elbo_nats"], abs=0.05)
    assert next(state.item() for name, state in tensors(tmp_path).items() if name.endswith(".step")) == 20


def test_rows_that_cannot_pass_in_parts_are_refused_by_the_key(
    make_run: Callable[..., TrainRun], models: Mapping[str, ModelConfig], tmp_path: Path
) -> None:
    run = make_run(replace(models["vae"], free_bits=0.1))
    with pytest.raises(UserError, match=r"^params.yaml: models: free_bits: .*; set compute.max_rows to null, or train"):
        go(run, tmp_path, max_rows=127)
    assert not (tmp_path / "metrics.jsonl").exists()
    go(run, tmp_path, max_rows=128, epochs=1)


def test_restored_moments_lie_in_memory_as_their_parameters() -> None:
    """Those of channels-last convolutions do not lie as they were saved, and one kernel walks through both."""
    taken = []
    for restored in (False, True):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(net, learning_rate=0.1)  # type: ignore[arg-type]
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.linspace(0, 1, 75).view(1, 3, 5, 5)).square().sum().backward()
            optimizer.step()
            if restored:
                for state in optimizer.state.values():
                    state.update({name: value.contiguous() for name, value in state.items()})
                learner.lay_out(optimizer)
        taken.append(net.weight.detach().clone())
        assert optimizer.state[net.weight]["exp_avg"].stride() == net.weight.stride()
    assert torch.equal(*taken)


def test_a_model_that_does_not_fit_the_data_names_the_key(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    network = ConvConfig(kind="conv", channels=2, downsamples=4)
    model: ModelConfig = VQVAEConfig(kind="vqvae", num_codes=4, code_dim=2, network=network)
    with pytest.raises(UserError, match=r"^params.yaml: models: network.downsamples: 4 halvings need .* are 8 x 8: "):
        go(make_run(model), tmp_path)


def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards with one bit flipped in a training image."""
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    path = copy / "train" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    return copy


def test_a_damaged_shard_is_named(
    shards: Path, tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]
) -> None:
    run = make_run(folder=damaged(shards, tmp_path))
    with pytest.raises(UserError, match=r"^/.*train-000000.tar: damaged or exchanged: expected sha256 .*shard`$"):
        go(run, tmp_path / "run")
    with pytest.raises(UserError, match=r"train-000000.tar: damaged or exchanged"):  # before Ray starts
        fit(run, tmp_path / "run", make_compute(), what="train", total_steps=20)


ray_test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_train_worker_gives_the_same_bytes(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path,
    threads: Callable[[int], None],
) -> None:  # fmt: skip
    """It also resumes a run that was killed elsewhere."""
    threads(2)  # as many as the worker has cores
    go(make_run("vqvae"), tmp_path / "here")
    with killed("train_step", 7):
        go(make_run("vqvae"), tmp_path / "there")
    fit(make_run("vqvae"), tmp_path / "there", make_compute(), what="train", total_steps=20)
    assert outcome(tmp_path / "there") == outcome(tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "speed.jsonl",
    ]


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_two_ray_train_workers_give_the_same_figures(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path,
    trained: Mapping[str, Path],
) -> None:  # fmt: skip
    fit(make_run("vqvae"), tmp_path, make_compute(workers=2), what="train", total_steps=20)
    ours, alone = MetricLog(tmp_path).rows(), MetricLog(trained["vqvae"]).rows()
    assert [row["samples"] for row in ours] == [row["samples"] for row in alone]
    for one, other in zip(ours, alone, strict=True):
        assert one["neg_elbo_nats"] == pytest.approx(other["neg_elbo_nats"], abs=0.2)


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_a_mistake_inside_a_worker_is_told_once_as_such(
    tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]
) -> None:
    """Neither as a traceback, nor after trying again."""
    run = make_run(learning_rate=1e12, max_skipped_steps=2)
    with pytest.raises(UserError, match=r"^step 4: loss or gradient not finite, 3 steps skipped .*the loss of sample"):
        fit(run, tmp_path, make_compute(max_failures=3), what="train", total_steps=20)


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_name_the_same_samples_as_one(
    tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]
) -> None:
    """Whichever of them is heard."""
    run = make_run(learning_rate=1e12, max_skipped_steps=2)
    with pytest.raises(UserError) as alone:
        go(run, tmp_path / "alone")
    with pytest.raises(UserError) as together:
        fit(run, tmp_path / "two", make_compute(workers=2), what="train", total_steps=20)
    assert str(together.value) == str(alone.value)


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_the_mistake_of_one_rank_ends_all(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path
) -> None:
    """As where one node has no credentials. The other rank would wait for it in the first collective call."""

    @dataclass(frozen=True, kw_only=True)
    class OnRankZero(TrainRun):
        def open(self, split: str) -> Split:
            if distributed.rank() == 1:
                raise UserError("access refused")
            return TrainRun.open(self, split)

    run = make_run()
    run = OnRankZero(**{field.name: getattr(run, field.name) for field in fields(run)})
    with pytest.raises(UserError, match=r"^access refused$"):
        fit(run, tmp_path, make_compute(workers=2, max_failures=3), what="train", total_steps=20)


@ray_test
@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_cores_are_refused(
    tmp_path: Path, make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine's workers count GPUs")
    with pytest.raises(UserError, match=r"^params.yaml: compute.workers: 3 workers need as many cores, Ray has 2$"):
        fit(make_run(), tmp_path, make_compute(workers=3), what="train", total_steps=20)
