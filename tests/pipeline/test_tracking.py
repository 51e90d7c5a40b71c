"""The stream of a run's figures: it survives a kill, and curves and progress are made from it."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.progress import copied, say
from pipeline.train.tracking import SAID, MetricLog, curves, follow, follow_sweep


def figures(value: float) -> dict[str, float]:
    return {"neg_elbo_nats": value, "distortion_nats": value - 5, "rate_nats": 5.0}


@pytest.fixture
def log(tmp_path: Path) -> MetricLog:
    """Two epochs of ten steps, with a row of training figures in the middle of each."""
    log = MetricLog(tmp_path)
    for epoch in range(2):
        at = 10 * epoch
        log.write(step=at + 5, epoch=epoch, samples=at + 5, split="train", values=figures(100 - at))
        log.write(step=at + 10, epoch=epoch, samples=at + 10, split="train", values=figures(90 - at))
        log.write(step=at + 10, epoch=epoch, samples=at + 10, split="val", values=figures(95 - at))
    return log


def test_rows_are_read_as_they_were_written(log: MetricLog) -> None:
    assert log.rows()[0] == {"step": 5, "epoch": 0, "samples": 5, "split": "train", **figures(100)}
    assert [row["step"] for row in log.rows()] == [5, 10, 10, 15, 20, 20]
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == log.rows()


def test_epochs_are_the_validation_figures_alone(log: MetricLog) -> None:
    assert log.epochs() == [figures(95), figures(85)]


def test_a_run_that_has_not_begun_has_no_rows(tmp_path: Path) -> None:
    assert MetricLog(tmp_path).rows() == []
    assert MetricLog(tmp_path).epochs() == []


def test_half_a_last_line_is_passed_over_and_then_removed(log: MetricLog) -> None:
    whole, text = log.rows(), log.path.read_text()
    for cut in (1, 20, len(text.splitlines()[-1])):
        log.path.write_text(text + text.splitlines()[-1][:cut])
        assert log.rows() == whole
    log.rewind(20)
    log.write(step=21, epoch=2, samples=21, split="train", values={})
    assert [row["step"] for row in log.rows()] == [*(row["step"] for row in whole), 21]


@pytest.mark.parametrize(("step", "left"), [(20, 6), (19, 4), (15, 4), (10, 3), (9, 1), (0, 0)])
def test_rewinding_forgets_the_rows_after_a_step(log: MetricLog, step: int, left: int) -> None:
    before = log.rows()
    log.rewind(step)
    assert log.rows() == before[:left]


def test_figures_are_finite(log: MetricLog) -> None:
    before = log.rows()
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(step=21, epoch=2, samples=1, split="val", values={"rate_nats": float("nan")})
    assert log.rows() == before


def test_curves_have_a_line_an_epoch_with_the_last_training_figures(log: MetricLog) -> None:
    lines = [line.split("\t") for line in curves(log.rows()).splitlines()]
    names = ("neg_elbo_nats", "distortion_nats", "rate_nats")
    assert lines[0] == ["epoch", "step", *(f"train_{name}" for name in names), *(f"val_{name}" for name in names)]
    assert lines[1] == ["1", "10", "90.000000", "85.000000", "5.000000", "95.000000", "90.000000", "5.000000"]
    assert lines[2] == ["2", "20", "80.000000", "75.000000", "5.000000", "85.000000", "80.000000", "5.000000"]
    assert len(lines) == 3


def test_without_a_terminal_progress_is_one_line_an_epoch(log: MetricLog, capsys: pytest.CaptureFixture[str]) -> None:
    with follow(log.path.parent, what="train vae", total_steps=20):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "train vae: epoch 1, validation neg_elbo 95.00, distortion 90.00, rate 5.00 nats",
        "train vae: epoch 2, validation neg_elbo 85.00, distortion 80.00, rate 5.00 nats",
    ]


def test_progress_follows_rows_as_they_come_and_once(log: MetricLog, capsys: pytest.CaptureFixture[str]) -> None:
    with follow(log.path.parent, what="t", total_steps=30):
        seen = list(until_printed(capsys, "epoch 2"))
        log.write(step=30, epoch=2, samples=30, split="val", values=figures(75))
    text = "".join(seen) + capsys.readouterr().err
    assert re.findall(r"epoch (\d)", text) == ["1", "2", "3"]


def until_printed(capsys: pytest.CaptureFixture[str], words: str) -> Iterator[str]:
    deadline = time.monotonic() + 20
    text = ""
    while words not in text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        text = capsys.readouterr().err
        yield text


def test_what_a_rank_says_is_passed_on_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = tmp_path / "run" / SAID
    with copied(said):
        say("of an earlier attempt")
    capsys.readouterr()
    with follow(tmp_path / "run", what="t", total_steps=30):
        with said.open("a") as file:
            file.write("s3://bucket does not answer\n" * 2 + "half a li")
        until = "".join(until_printed(capsys, "answer"))
        with said.open("a") as file:
            file.write("ne\n")
    assert until + capsys.readouterr().err == "s3://bucket does not answer\nhalf a line\n"


def test_what_is_said_is_copied_while_the_block_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with copied(tmp_path / "said"):
        assert not (tmp_path / "said").exists()
        say("one")
    say("two")
    assert (tmp_path / "said").read_text() == "one\n"
    assert capsys.readouterr().err == "one\ntwo\n"


def test_progress_of_a_sweep_ends_with_the_best_of_its_trials(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow_sweep([log.path.parent, tmp_path / "never began"], what="tune vae", epochs=2):
        pass
    assert capsys.readouterr().err == "tune vae: 2 trials, best validation neg_elbo 85.00 nats\n"


@pytest.fixture
def without_rate(tmp_path: Path) -> MetricLog:
    """An epoch of a family that has a distortion alone."""
    log = MetricLog(tmp_path)
    for split in ("train", "val"):
        log.write(step=10, epoch=0, samples=10, split=split, values={"distortion_nats": 41.5})
    return log


def test_a_family_without_a_prior_is_followed_by_its_distortion(
    without_rate: MetricLog, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow(without_rate.path.parent, what="train ae", total_steps=10):
        pass
    with follow_sweep([without_rate.path.parent], what="tune ae", epochs=1):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "train ae: epoch 1, validation distortion 41.50 nats",
        "tune ae: 1 trials, best validation distortion 41.50 nats",
    ]
    assert curves(without_rate.rows()).splitlines()[1].split("\t") == [
        "1", "10", "nan", "41.500000", "nan", "nan", "41.500000", "nan"]  # fmt: skip


def test_a_row_without_figures_does_not_end_the_progress(log: MetricLog, capsys: pytest.CaptureFixture[str]) -> None:
    """As after an epoch in which every step was skipped."""
    log.write(step=30, epoch=2, samples=30, split="train", values={"skipped_steps": 10})
    log.write(step=30, epoch=2, samples=30, split="val", values=figures(85))
    with follow(log.path.parent, what="t", total_steps=30):
        pass
    assert capsys.readouterr().err.splitlines()[-1].startswith("t: epoch 3, ")


def test_counters_are_no_figures(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    log.write(step=10, epoch=0, samples=10, split="val", values=figures(85))
    assert set(log.epochs()[0]) == {"neg_elbo_nats", "distortion_nats", "rate_nats"}
