"""The training loop: one function, the same result however often it is broken off and wherever it runs."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import ComputeConfig
from pipeline.data.loader import Split, open_split
from pipeline.errors import UserError
from pipeline.train import checkpoints, loop
from pipeline.train.loop import build, train
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog
from pipeline.train.worker import fit
from vae_core import distributed
from vae_core.config import ConvConfig, ModelConfig, VQVAEConfig
from vae_core.models.vae import VAE
from vae_core.objectives import gaussian_kl

FAMILIES = ("vae", "cvae", "vqvae")
STEPS = 10  # an epoch
LAST = "step-000000020"


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
    found = {path.name: path.read_bytes() for path in (directory / "checkpoints" / LAST).iterdir()}
    return {**found, "rows": (directory / "metrics.jsonl").read_bytes()}


@contextmanager
def killed(function: str, call: int) -> Any:
    """Break the block off at the nth call of a function of the loop."""
    owner, _, name = function.rpartition(".")
    owner = checkpoints if owner else loop
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
        first, last = (row["neg_elbo_nats"] for row in rows if row["split"] == split)
        assert last < first
    for row in rows:
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
    assert outcome(tmp_path)["model.safetensors"] != outcome(trained[family])["model.safetensors"]
    assert outcome(tmp_path)["rows"] != outcome(trained[family])["rows"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("call", [1, 4, 5, 10, 11, 17, 20])
def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(
    family: str, call: int, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with killed("train_step", call):
        go(make_run(family), tmp_path)
    go(make_run(family), tmp_path)
    assert outcome(tmp_path) == outcome(trained[family])


@pytest.mark.parametrize(
    ("function", "call"), [("evaluate", 1), ("evaluate", 2), ("save", 1), ("save", 3), ("save", 6)]
)
def test_a_run_killed_between_steps_resumes_to_the_same_bytes(
    function: str, call: int, trained: Mapping[str, Path], make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with killed(f"checkpoints.{function}" if function == "save" else function, call):
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
    (newest.path / "optimizer.safetensors").write_bytes(b"torn")
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


def test_each_epoch_is_reported_once_with_its_checkpoint_on_disk(
    make_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    def report(epoch: int, figures: dict[str, float]) -> None:
        newest = checkpoints.latest(tmp_path / "checkpoints")
        assert newest is not None
        told.append((epoch, figures, newest.state["step"]))

    told: list[tuple[int, dict[str, float], int]] = []
    go(make_run(), tmp_path, on_epoch=report)
    figures = MetricLog(tmp_path).epochs()
    assert told == [(0, figures[0], 10), (1, figures[1], 20)]


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
    monkeypatch.setattr(loop, "train_step", None)
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
    state = json.loads((trained["vae"] / "checkpoints" / LAST / "state.json").read_text())
    assert (state["step"], state["means"]) == (20, {})
    assert (state["loader"]["epoch"], state["loader"]["step"]) == (2, 0)


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
            posterior = model.encode(x)
            rates.append(gaussian_kl(posterior.mean, posterior.log_var).item())
    assert means["rate_nats"] == pytest.approx(math.fsum(rates) / len(split), rel=1e-6)


def test_a_gradient_that_is_not_finite_names_the_remedy(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        go(make_run(learning_rate=1e12), tmp_path)
    assert str(error.value) == (
        "step 2: gradient norm nan at learning rate 2e+11; "
        "lower train.learning_rate or train.max_grad_norm in params.yaml"
    )


def test_a_model_that_does_not_fit_the_data_names_the_key(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    network = ConvConfig(kind="conv", channels=2, downsamples=4)
    model: ModelConfig = VQVAEConfig(kind="vqvae", num_codes=4, code_dim=2, network=network)
    with pytest.raises(UserError, match=r"^params.yaml: models: network.downsamples: 4 halvings need .* are 8 x 8$"):
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
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["checkpoints", "metrics.jsonl"]


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
    with pytest.raises(UserError, match=r"^step 2: gradient norm nan at learning rate 2e\+11; lower .* params.yaml$"):
        fit(make_run(learning_rate=1e12), tmp_path, make_compute(max_failures=3), what="train", total_steps=20)


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
