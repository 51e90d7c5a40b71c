"""The prior stage: codes as the model sees them, the best epoch kept, the same bytes however often it is broken off."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from pipeline import files
from pipeline.config import Params, PriorConfig, load_params
from pipeline.data.loader import open_split
from pipeline.errors import Diverged, UserError
from pipeline.evaluate.models import open_model, open_prior
from pipeline.prior import codes as codes_module
from pipeline.prior import train as train_module
from pipeline.prior.codes import Coded, encode_split
from pipeline.prior.train import PriorRun, Trained, outcome, train_prior
from pipeline.stages import prior as stage
from pipeline.train import checkpoints
from pipeline.train.folders import DiskFolder
from vae_core.config import ConvConfig, DataSpec, VQVAE2Config
from vae_core.config.priors import PixelCNNConfig
from vae_core.models import CodeModel, build_model
from vae_core.priors import uniform_nats
from vae_core.sampling import sample
from vae_core.serialize import CONFIG, WEIGHTS, describe, dump_tensors

NETWORK = PixelCNNConfig(channels=8, layers=2, dropout=0.1)
CPU = torch.device("cpu")
STEPS = 10  # an epoch


def config_of(**changes: Any) -> PriorConfig:
    return PriorConfig(**{"epochs": 2, "learning_rate": 0.01, "network": NETWORK, **changes})


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not need the disk to have it."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def levelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two grids of codes and a condition, as it was initialised."""
    config = VQVAE2Config(kind="vqvae2", num_codes=6, code_dim=3, condition="label", condition_dropout=0.2,
                          network=ConvConfig(kind="conv", channels=4, downsamples=1))  # fmt: skip
    data, folder = DataSpec(channels=1, height=8, width=8, num_classes=10), tmp_path_factory.mktemp("levelled")
    (folder / WEIGHTS).write_bytes(dump_tensors(build_model(config, data).state_dict()))
    files.write_json(folder / CONFIG, describe(config, data))
    return folder


def code_model(directory: Path) -> CodeModel:
    model = open_model(directory)
    assert isinstance(model, CodeModel)
    return model


def coded(model: CodeModel, shards: Path, split: str, seed: int = 0) -> Coded:
    return encode_split(model, open_split(shards, split), seed=seed, device=CPU, what=split)


@pytest.fixture(scope="module")
def splits(published: Mapping[str, Path], shards: Path) -> tuple[Coded, Coded]:
    """Codes of the training and validation splits under the trained model."""
    model = code_model(published["vqvae"])
    return coded(model, shards, "train"), coded(model, shards, "val")


@pytest.fixture(scope="module")
def make(published: Mapping[str, Path], shards: Path) -> Callable[..., PriorRun]:
    """A run on the trained model's codes; keywords change the configuration."""

    def run_of(folder: Path = published["vqvae"], **changes: Any) -> PriorRun:
        return PriorRun.of(config_of(**changes), code_model(folder), folder, open_split(shards, "train").digest)

    return run_of


def go(run: PriorRun, splits: tuple[Coded, Coded], directory: Path, every: int = 4) -> Trained:
    return train_prior(run, *splits, directory, checkpoint_every_steps=every, what="prior", device=CPU)


@pytest.fixture(scope="module")
def whole(
    make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """A run that nothing broke off."""
    return go(make(), splits, tmp_path_factory.mktemp("whole"))


@contextmanager
def killed(owner: Any, name: str, call: int) -> Iterator[None]:
    """Break the block off at the nth call of a function."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def counted(*args: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **keywords)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(owner, name, counted)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_codes_are_those_of_the_model_in_the_order_of_the_split(levelled: Path, shards: Path) -> None:
    model, split = code_model(levelled), open_split(shards, "val")
    found = coded(model, shards, "val")
    assert len(found) == len(split) == 304
    rows = torch.tensor([300, 0, 77])
    levels, condition = found.rows(rows, CPU)
    batch = split.batch(rows.numpy())
    with torch.no_grad():
        expected = model.represent(batch.images.float() / 255, model.condition(batch))
    assert [level.shape for level in levels] == [(3, *grid) for grid in model.grids]
    assert len(levels) == 2
    assert all(torch.equal(one, other) for one, other in zip(levels, expected, strict=True))
    assert condition is not None
    assert batch.labels is not None
    assert torch.equal(condition.argmax(1), batch.labels)
    assert found.codes.dtype == torch.int16
    assert {level.dtype for level in levels} == {torch.int64}


def test_codes_do_not_depend_on_how_many_are_made_at_once(
    published: Mapping[str, Path], shards: Path, splits: tuple[Coded, Coded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "BATCH", 37)
    found = coded(code_model(published["vqvae"]), shards, "val")
    assert torch.equal(found.codes, splits[1].codes)
    assert found.condition is None


def test_it_learns_more_than_the_uniform_prior_knows(whole: Trained, make: Callable[..., PriorRun]) -> None:
    uniform = uniform_nats(make().build())
    first, last = (epoch["val"]["nll_nats"] for epoch in whole.epochs)
    assert last < first < uniform
    for epoch in whole.epochs:
        for figures in epoch.values():
            assert figures["nll_nats"] == pytest.approx(figures["level_1_nats"])


def test_the_validation_figure_is_the_mean_cost_of_the_whole_split(
    whole: Trained, make: Callable[..., PriorRun], splits: tuple[Coded, Coded]
) -> None:
    prior = make().build()
    prior.load_state_dict(load(whole.weights))
    with torch.no_grad():
        cost = prior.nll(*splits[1].rows(torch.arange(304), CPU)).double().mean()
    assert whole.epochs[whole.best_epoch]["val"]["nll_nats"] == pytest.approx(cost.item(), rel=1e-6)


def test_a_second_run_gives_the_same_and_another_seed_another_result(
    whole: Trained, make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path
) -> None:
    torch.manual_seed(5)  # what the global generator holds does not matter
    assert go(make(), splits, tmp_path / "same") == whole
    assert go(make(seed=1), splits, tmp_path / "other").weights != whole.weights


@pytest.mark.parametrize("call", [1, 4, 5, 10, 11, 17, 20])
def test_a_run_killed_at_any_step_ends_the_same(
    call: int, whole: Trained, make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path
) -> None:
    with killed(train_module, "prior_step", call):
        go(make(), splits, tmp_path)
    assert go(make(), splits, tmp_path) == whole


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (checkpoints, "write", 1),
        (checkpoints, "write", 3),
        (checkpoints, "write", 6),
        (DiskFolder, "write", 3),
        (train_module._Loop, "_validate", 1),
        (train_module._Loop, "_validate", 2),
    ],
)
def test_a_run_killed_between_steps_ends_the_same(
    owner: Any, name: str, call: int, whole: Trained, make: Callable[..., PriorRun], splits: tuple[Coded, Coded],
    tmp_path: Path,
) -> None:  # fmt: skip
    with killed(owner, name, call):
        go(make(), splits, tmp_path)
    assert go(make(), splits, tmp_path) == whole


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    whole: Trained, make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path
) -> None:
    with killed(train_module, "prior_step", 14):
        go(make(), splits, tmp_path)
    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.state["step"] == 12
    (tmp_path / "checkpoints" / newest.name).write_bytes(b"torn")
    assert go(make(), splits, tmp_path) == whole


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_without_the_checkpoint_of_the_best_epoch_it_is_trained_anew(
    damage: Callable[[Path], object], make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    costs = iter([1.0, 2.0, 3.0, 4.0] * 2)
    monkeypatch.setattr(train_module._Loop, "_validate", lambda self: {"nll_nats": next(costs)})
    expected = go(make(epochs=4), splits, tmp_path)
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [checkpoints.step_of(path.name) for path in kept] == [STEPS, 4 * STEPS - 4, 4 * STEPS]
    damage(kept[0])
    assert outcome(make(epochs=4), tmp_path) is None
    assert go(make(epochs=4), splits, tmp_path) == expected
    assert "that of the best epoch is damaged or gone; the prior is trained anew" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_again(
    whole: Trained, make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    go(make(), splits, tmp_path)
    monkeypatch.setattr(train_module, "prior_step", None)
    assert go(make(), splits, tmp_path) == whole


def test_every_row_is_learned_from_once_an_epoch(
    make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Tensor] = []
    original = Coded.rows

    def noted(self: Coded, rows: Tensor, device: torch.device) -> Any:
        asked.append(rows)
        return original(self, rows, device)

    monkeypatch.setattr(Coded, "rows", noted)
    go(make(), splits, tmp_path)
    steps = [rows for rows in asked if len(rows) <= 128]
    assert [len(rows) for rows in steps] == ([128] * 9 + [11]) * 2
    first, second = torch.cat(steps[:STEPS]), torch.cat(steps[STEPS:])
    assert torch.equal(first.sort().values, torch.arange(1163))
    assert torch.equal(second.sort().values, torch.arange(1163))
    assert not torch.equal(first, second)


def test_the_best_epoch_is_kept_and_not_the_last(
    make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = go(make(), splits, tmp_path / "two")
    costs = iter([3.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(train_module._Loop, "_validate", lambda self: {"nll_nats": next(costs)})
    found = go(make(epochs=4), splits, tmp_path / "four")
    assert found.best_epoch == 1
    assert found.weights == expected.weights


def test_the_condition_is_learned_and_hidden_as_in_the_model(
    levelled: Path, make: Callable[..., PriorRun], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = make(levelled), []
    assert (run.condition_dim, run.condition_dropout, len(run.grids)) == (10, 0.2, 2)
    step = train_module.prior_step

    def noted(prior: Any, codes: Any, c: Tensor, *rest: Any, **keywords: Any) -> Any:
        given.append(c)
        return step(prior, codes, c, *rest, **keywords)

    monkeypatch.setattr(train_module, "prior_step", noted)
    splits = coded(code_model(levelled), shards, "train"), coded(code_model(levelled), shards, "val")
    found = go(run, splits, tmp_path)
    hidden = (torch.cat(given).sum(1) == 0).float().mean().item()
    assert hidden == pytest.approx(0.2, abs=0.03)
    figures = found.epochs[1]["val"]
    assert figures["nll_nats"] == pytest.approx(figures["level_1_nats"] + figures["level_2_nats"])
    assert load(found.weights)["levels.0.context.condition.weight"].shape == (8, 10)


def test_runs_are_told_apart_by_all_that_decides_the_result(make: Callable[..., PriorRun], levelled: Path) -> None:
    run = make()
    others = [make(epochs=3), make(network=PixelCNNConfig(channels=9)), make(levelled), replace(run, data="other"),
              replace(run, model="other"), replace(run, code="other")]  # fmt: skip
    assert make().name == run.name
    assert len({run.name, *(other.name for other in others)}) == 7


def test_a_run_that_is_lost_says_what_to_lower(
    make: Callable[..., PriorRun], splits: tuple[Coded, Coded], tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=r"step 10: the validation cost is not finite; lower prior\.learning_rate"):
        go(make(learning_rate=1e30, max_grad_norm=1e30), splits, tmp_path / "first")
    with pytest.raises(Diverged, match=r"step 12: loss or gradient not finite, 11 steps skipped; lower prior\."):
        go(make(learning_rate=1e30, max_grad_norm=1e30, global_batch_size=64), splits, tmp_path / "second")


@pytest.fixture
def params(params_text: str, tmp_path: Path) -> Params:
    text = params_text.replace(
        "prior: {}", "prior: {epochs: 1, learning_rate: 0.01, network: {channels: 8, layers: 2}}"
    )
    (tmp_path / "params.yaml").write_text(text)
    return load_params(tmp_path / "params.yaml")


@pytest.fixture
def project(published: Mapping[str, Path], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards and the best models, where stages run."""
    for family in ("vae", "vqvae"):
        shutil.copytree(published[family], tmp_path / "models" / family / "best")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stage_leaves_a_prior_that_draws_images(project: Path, params: Params) -> None:
    stage.main(params, "vqvae")
    out = project / "models" / "vqvae" / "prior"
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, "metrics.json", WEIGHTS]
    figures = files.read_json(out / "metrics.json")
    assert figures["kind"] == "pixelcnn"
    assert (figures["epochs"], figures["best_epoch"], len(figures["nll_nats"])) == (1, 1, 1)
    assert figures["val"]["nll_nats"] < figures["uniform_nats"]
    assert figures["nll_nats"][0]["val"] == figures["val"]["nll_nats"]
    assert set(files.read_json(out / CONFIG)["lineage"]) == {"data", "model", "params", "code"}
    prior, model = open_prior(out), code_model(project / "models" / "vqvae" / "best")
    assert prior is not None
    assert prior.config == PixelCNNConfig(channels=8, layers=2)
    assert sample(model, 3, seed=0, prior=prior).shape == (3, 1, 8, 8)


def test_the_stage_leaves_the_same_bytes_each_time(project: Path, params: Params) -> None:
    out = project / "models" / "vqvae" / "prior"
    stage.main(params, "vqvae")
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.rmtree(project / ".runs")
    with killed(train_module, "prior_step", 7):
        stage.main(params, "vqvae")
    stage.main(params, "vqvae")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_a_finished_run_trains_nothing_and_writes_its_outputs_again(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = project / "models" / "vqvae" / "prior"
    stage.main(params, "vqvae")
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    (folder,) = (project / ".runs").glob("vqvae-prior-*")
    what, finished = (files.read_json(folder / name) for name in ("run.json", "finished.json"))
    lineage = files.read_json(out / CONFIG)["lineage"]
    assert {name: what[name] for name in lineage} == lineage
    assert (what["kind"], what["family"], what["prior"]["epochs"]) == ("prior", "vqvae", 1)
    assert finished["figures"] == files.read_json(out / "metrics.json")["val"]
    shutil.rmtree(out)
    monkeypatch.setattr(train_module, "prior_step", None)
    stage.main(params, "vqvae")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert f"is finished; its outputs are written again from {folder}" in capsys.readouterr().err
    assert files.read_json(folder / "finished.json") == finished


def test_a_family_of_continuous_codes_has_its_prior_in_the_model(project: Path, params: Params) -> None:
    stage.main(params, "vae")
    out = project / "models" / "vae" / "prior"
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    assert files.read_json(out / "metrics.json")["kind"] == "none"
    assert open_prior(out) is None


def test_the_stage_says_that_the_model_is_missing(project: Path, params: Params) -> None:
    shutil.rmtree(project / "models" / "vqvae" / "best")
    with pytest.raises(UserError, match="models/vqvae/best"):
        stage.main(params, "vqvae")
    with pytest.raises(UserError, match="--family"):
        stage.main(params, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prior: {epochs: 0}", r"prior.epochs: .*at least 1"),
        ("prior: {learning_rate: 0.0}", r"prior.learning_rate: .*above 0"),
        ("prior: {network: {chanels: 3}}", r"prior.network.chanels: unknown key.*channels"),
        ("prior: {network: {dropout: 1.0}}", r"prior.network.dropout: .*below 1"),
        ("prior: {network: {kind: transformer}}", r"prior.network.kind: "),
    ],
)
def test_a_wrong_key_or_value_is_named(params_text: str, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(params_text.replace("prior: {}", text))
    with pytest.raises(UserError, match=message):
        load_params(tmp_path / "params.yaml")
