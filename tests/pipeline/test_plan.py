"""What a sweep is judged by: figures of the loop, or others that are measured where a trial passes a rung."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import Here

from pipeline import files
from pipeline.errors import UserError
from pipeline.evaluate.models import open_model
from pipeline.evaluate.validation import validation_figures
from pipeline.train.config import ComputeConfig
from pipeline.train.publish import publish_model
from pipeline.train.run import TrainRun
from pipeline.train.storage import read_json
from pipeline.tune.config import SearchConfig
from pipeline.tune.measure import HOW
from pipeline.tune.plan import plan
from pipeline.tune.search import search
from pipeline.tune.trials import Sweep

SPACE = {"beta": (0.5, 2.0)}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def planned(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], published: Mapping[str, Path]
) -> Callable[..., Sweep]:
    """A sweep of two trials around a published model, judged by a figure."""

    def make(metric: Any, family: str = "vae", **changes: Any) -> Sweep:
        values = {"trials": 2, "seed": 0, "kind": "grid", "scheduler": "halving", "rungs": (1,), **changes}
        return plan(
            family, make_run(family), published[family], search=SearchConfig(**values), space=SPACE, metric=metric,
            compute=make_compute(), features=Path("no-such-folder"))  # fmt: skip

    return make


@pytest.mark.parametrize(("family", "name"), [("vae", "neg_elbo_nats"), ("autoencoder", "distortion_nats")])
def test_without_a_metric_a_family_is_judged_by_its_primary_figure(planned: Any, family: str, name: str) -> None:
    sweep = planned(None, family)
    assert sweep.objectives.names == (name,)
    assert sweep.objectives.directions == ("min",)
    assert sweep.measures is None


def test_figures_of_the_loop_need_no_measuring(planned: Any, published: Mapping[str, Path]) -> None:
    sweep = planned(["rate_nats", "distortion_nats"])
    assert sweep.objectives.names == ("rate_nats", "distortion_nats")
    assert sweep.measures is None
    assert sweep.known == files.read_json(published["vae"] / "metrics.json")["val"]


def test_an_unknown_figure_is_refused_with_those_there_are(planned: Any) -> None:
    with pytest.raises(UserError, match=r"^params.yaml: tune.metric: loss: not a figure .*neg_elbo_nats.*psnr_db"):
        planned("loss")


def test_a_missing_baseline_is_told(planned: Any, make_run: Any, make_compute: Any, tmp_path: Path) -> None:
    search_config = SearchConfig(trials=1, seed=0, scheduler="none", rungs=())
    with pytest.raises(UserError, match=r"metrics.json: .*make it again with `dvc repro`"):
        plan("vae", make_run(), tmp_path, search=search_config, space=SPACE, metric=None, compute=make_compute(),
             features=tmp_path)  # fmt: skip


def measured(directory: Path, run: TrainRun) -> dict[str, float]:
    return validation_figures(
        open_model(directory), run.open("train"), run.open("val"), names=("psnr_db",), config=HOW, classifier=None
    )


@pytest.fixture(autouse=True)
def without_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on data without labels: no distances, and no classifier to train."""
    monkeypatch.setattr("pipeline.evaluate.classifier.open_classifier", lambda folder, split: None)


def test_other_figures_are_measured_at_each_rung(
    planned: Any, published: Mapping[str, Path], make_run: Any, tmp_path: Path
) -> None:
    sweep = planned("psnr_db")
    assert sweep.objectives.directions == ("max",)
    assert sweep.known["psnr_db"] == measured(published["vae"], make_run())["psnr_db"]
    trials = search(sweep, Here())
    figures = [read_json(trial.folder, "figures.json") for trial in trials]
    assert sorted(sorted(each) for each in figures if each) == [["1"], ["1", "2"]]
    at_rung = {trial.name: each["1"]["psnr_db"] for trial, each in zip(trials, figures, strict=True) if each}
    (best,) = (trial for trial in trials if trial.status == "completed")
    assert best.name == max(at_rung, key=at_rung.__getitem__)
    assert best.figures["psnr_db"] == best.epochs[1]["psnr_db"]
    publish_model(best.run, best.folder, tmp_path / "best")
    assert best.figures["psnr_db"] == measured(tmp_path / "best", best.run)["psnr_db"]
    assert "psnr_db" in best.epochs[0]
    again = Here()
    assert search(planned("psnr_db"), again) == trials
    assert again.done == []


def test_a_figure_that_a_kill_left_unmeasured_is_measured_when_the_sweep_goes_on(planned: Any) -> None:
    options = {"scheduler": "none"}
    trials = search(planned("psnr_db", **options), Here())
    trials[1].folder.remove("figures.json")
    again = Here()
    assert search(planned("psnr_db", **options), again) == trials
    assert again.done == [(trials[1].name, 2)]


def test_a_figure_whose_checkpoint_is_gone_is_measured_by_training_anew(planned: Any) -> None:
    trials = search(planned("psnr_db"), Here())
    (longest,) = (trial for trial in trials if trial.status == "completed")
    longest.folder.remove("figures.json")
    again = Here()
    assert search(planned("psnr_db"), again) == trials
    assert again.done == [(longest.name, 1), (longest.name, 2)]


def test_measuring_leaves_the_training_as_it_is(planned: Any) -> None:
    plain, judged = (search(planned(metric), Here()) for metric in (None, "psnr_db"))
    for one, other in zip(plain, judged, strict=True):
        assert one.folder != other.folder
        both = min(len(one.epochs), len(other.epochs))
        for a, b in zip(one.epochs[:both], other.epochs[:both], strict=True):
            assert a == {name: value for name, value in b.items() if name != "psnr_db"}


def test_the_number_of_threads_is_put_back(planned: Any) -> None:
    before = torch.get_num_threads()
    planned("psnr_db")
    assert torch.get_num_threads() == before
