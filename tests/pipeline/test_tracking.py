"""The stream of a run's figures: it survives a kill, and curves and progress are made from it."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.progress import copied, say
from pipeline.train.folders import open_folder
from pipeline.train.following import SAID, follow, follow_sweep, speaking
from pipeline.train.tracking import LOG, MetricLog, Tail, curves


def figures(value: float) -> dict[str, float]:
    return {"neg_elbo_nats": value, "distortion_nats": value - 5, "rate_nats": 5.0}


@pytest.fixture
def log(tmp_path: Path) -> MetricLog:
    """Two epochs."""
    log = MetricLog(tmp_path)
    write_epochs(log, 0, 1)
    return log


def write_epochs(log: MetricLog, *epochs: int) -> None:
    """Of ten steps, with a row of training figures in the middle of each."""
    for epoch in epochs:
        at = 10 * epoch
        log.write(step=at + 5, epoch=epoch, samples=at + 5, split="train", values=figures(100 - at))
        log.write(step=at + 10, epoch=epoch, samples=at + 10, split="train", values=figures(90 - at))
        log.write(step=at + 10, epoch=epoch, samples=at + 10, split="val", values=figures(95 - at))
    log.flush()


def test_rows_are_read_as_they_were_written(log: MetricLog, tmp_path: Path) -> None:
    assert log.rows()[0] == {"step": 5, "epoch": 0, "samples": 5, "split": "train", **figures(100)}
    assert [row["step"] for row in log.rows()] == [5, 10, 10, 15, 20, 20]
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == log.rows()


def test_epochs_are_the_validation_figures_alone(log: MetricLog) -> None:
    assert log.epochs() == [figures(95), figures(85)]


def test_a_run_that_has_not_begun_has_no_rows(tmp_path: Path) -> None:
    assert MetricLog(tmp_path).rows() == []
    assert MetricLog(tmp_path).epochs() == []


def test_half_a_last_line_is_passed_over_and_then_removed(log: MetricLog, tmp_path: Path) -> None:
    whole, text = log.rows(), (tmp_path / LOG).read_text()
    for cut in (1, 20, len(text.splitlines()[-1])):
        (tmp_path / LOG).write_text(text + text.splitlines()[-1][:cut])
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


def test_without_a_terminal_progress_is_one_line_an_epoch(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow(tmp_path / "run", what="train vae", total_steps=20):
        write_epochs(MetricLog(tmp_path / "run"), 0, 1)
    assert capsys.readouterr().err.splitlines() == [
        "train vae: epoch 1, validation neg_elbo 95.00, distortion 90.00, rate 5.00 nats",
        "train vae: epoch 2, validation neg_elbo 85.00, distortion 80.00, rate 5.00 nats",
    ]


def test_progress_follows_rows_as_they_come_and_once(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow(tmp_path, what="t", total_steps=40):
        write_epochs(log, 2)
        seen = list(until_printed(capsys, "epoch 3"))
        write_epochs(log, 3)
    text = "".join(seen) + capsys.readouterr().err
    assert re.findall(r"epoch (\d),", text) == ["3", "4"]


def test_a_run_that_goes_on_does_not_tell_of_the_earlier_epochs_again(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of those that it does again because its newest checkpoint was of an earlier step, and on other hardware."""
    with follow(tmp_path, what="t", total_steps=30):
        log.rewind(0)
        for epoch in range(2):
            log.write(step=10 * epoch + 10, epoch=epoch, samples=1, split="val", values=figures(95.5 - epoch))
        write_epochs(log, 2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines if "validation" in line] == ["t: epoch 3"]


def test_it_says_where_it_goes_on(log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with follow(tmp_path, what="t", total_steps=30):
        pass
    assert capsys.readouterr().err == "t: continues after epoch 2\n"


def until_printed(capsys: pytest.CaptureFixture[str], words: str) -> Iterator[str]:
    deadline = time.monotonic() + 120
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
    write_epochs(MetricLog(tmp_path / "slower"), 0)
    with follow_sweep([tmp_path, tmp_path / "slower", tmp_path / "never began"], what="tune vae", epochs=[2, 2, 2]):
        pass
    assert capsys.readouterr().err == "tune vae: 1 of 3 trials done, best validation neg_elbo 85.00 nats\n"


def test_a_sweep_tells_how_far_it_is(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.following.LINE_S", 0.0)
    other = MetricLog(tmp_path / "other")
    with follow_sweep([tmp_path, tmp_path / "other"], what="tune", epochs=[2, 2]):
        seen = "".join(until_printed(capsys, "tune: 1 of 2 trials done, best validation neg_elbo 85.00 nats\n"))
        write_epochs(other, 0, 1, 2)
    assert (seen + capsys.readouterr().err).splitlines()[-1].startswith("tune: 2 of 2 trials done, ")


def test_a_sweep_may_be_judged_by_another_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("one", 0.25), ("other", 0.5)):
        log = MetricLog(tmp_path / name)
        log.write(step=1, epoch=0, samples=1, split="val", values={"neg_elbo_nats": 1.0, "mig": value})
    with follow_sweep([tmp_path / "one", tmp_path / "other"], what="t", epochs=[1, 1], figure="mig", largest=True):
        pass
    assert capsys.readouterr().err == "t: 2 of 2 trials done, best validation mig 0.50\n"


def test_a_sweep_that_has_not_begun_has_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with follow_sweep([tmp_path / "one"], what="t", epochs=[1]):
        pass
    assert capsys.readouterr().err == "t: 0 of 1 trials done, best validation none yet\n"


@pytest.fixture
def without_rate(tmp_path: Path) -> MetricLog:
    """An epoch of a family that has a distortion alone."""
    log = MetricLog(tmp_path / "run")
    write_distortion(log)
    return log


def write_distortion(log: MetricLog) -> None:
    for split in ("train", "val"):
        log.write(step=10, epoch=0, samples=10, split=split, values={"distortion_nats": 41.5})


def test_a_family_without_a_prior_is_followed_by_its_distortion(
    without_rate: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow(tmp_path / "new", what="train ae", total_steps=10):
        write_distortion(MetricLog(tmp_path / "new"))
    with follow_sweep([tmp_path / "run"], what="tune ae", epochs=[1]):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "train ae: epoch 1, validation distortion 41.50 nats",
        "tune ae: 1 of 1 trials done, best validation distortion 41.50 nats",
    ]
    assert curves(without_rate.rows()).splitlines()[1].split("\t") == [
        "1", "10", "nan", "41.500000", "nan", "nan", "41.500000", "nan"]  # fmt: skip


def test_a_row_without_figures_does_not_end_the_progress(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an epoch in which every step was skipped."""
    with follow(tmp_path, what="t", total_steps=30):
        log.write(step=30, epoch=2, samples=30, split="train", values={"skipped_steps": 10})
        log.write(step=30, epoch=2, samples=30, split="val", values=figures(85))
    assert capsys.readouterr().err.splitlines()[-1].startswith("t: epoch 3, ")


def test_counters_are_no_figures(tmp_path: Path) -> None:
    log = MetricLog(tmp_path)
    log.write(step=10, epoch=0, samples=10, split="val", values=figures(85))
    assert set(log.epochs()[0]) == {"neg_elbo_nats", "distortion_nats", "rate_nats"}


def test_a_damaged_line_is_named_with_its_remedy(log: MetricLog, tmp_path: Path) -> None:
    lines = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    (tmp_path / LOG).write_bytes(b"".join([lines[0], b"{half\n", *lines[1:]]))
    with pytest.raises(UserError, match=rf"^{tmp_path}/{LOG}: a damaged line; `python -m pipeline runs repair`"):
        log.rows()


def test_a_damaged_line_ends_the_progress_and_not_the_run(
    log: MetricLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with follow(tmp_path, what="t", total_steps=30):
        with (tmp_path / LOG).open("a") as file:
            file.write("{half\n")
        list(until_printed(capsys, "t: progress is shown no longer: "))
    assert "validation" not in capsys.readouterr().err


@pytest.fixture
def address() -> Iterator[str]:
    """A store that puts whole objects."""
    yield "memory://store/run"
    fsspec.filesystem("memory").store.clear()


def test_at_an_address_rows_are_gathered_until_they_are_put(address: str) -> None:
    log = MetricLog(address)
    for epoch in range(2):
        log.write(step=10 * epoch, epoch=epoch, samples=1, split="val", values=figures(85))
        assert len(log.rows()) == epoch + 1
        assert len(MetricLog(address).rows()) == epoch
        log.flush()
        assert MetricLog(address).rows() == log.rows()
    log.rewind(0)
    assert len(MetricLog(address).rows()) == 1


def test_progress_and_words_come_through_an_address(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.following.REMOTE_PAUSE_S", 0.05)
    folder = open_folder(address)
    folder.write("said-0-aaaa.txt", b"of an earlier attempt\n")
    with follow(address, what="t", total_steps=30):
        write_epochs(MetricLog(address), 0)
        folder.write("said-0-bbbb.txt", b"one\n")
        folder.write("said-1-cccc.txt", b"one\ntwo\n")
    assert capsys.readouterr().err.splitlines() == [
        "one", "two", "t: epoch 1, validation neg_elbo 95.00, distortion 90.00, rate 5.00 nats"]  # fmt: skip


@pytest.mark.parametrize("place", ["disk", "address"])
def test_each_rank_is_heard(place: str, address: str, tmp_path: Path) -> None:
    folder = open_folder(tmp_path if place == "disk" else address)
    for rank in range(2):
        with speaking(folder, rank):
            say(f"rank {rank}")
    said = b"".join(folder.read(name) for name in folder.names("said"))
    assert said == b"rank 0\nrank 1\n"
    with speaking(folder, 0):
        pass
    assert b"".join(folder.read(name) for name in folder.names("said")) == said


parts = st.lists(st.tuples(st.binary(max_size=12), st.booleans()), max_size=8)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=parts)
def test_each_line_that_is_appended_is_read_once(tmp_path: Path, parts: list[tuple[bytes, bool]]) -> None:
    folder = open_folder(tmp_path)
    folder.remove("lines")
    tail, seen = Tail(folder, "lines"), b""
    for data, read in parts:
        folder.append("lines", data)
        seen += b"".join(tail.lines()) if read else b""
    whole = folder.read("lines") if parts else b""
    assert seen + b"".join(tail.lines()) == whole[: whole.rfind(b"\n") + 1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.integers(0, 5), kept=st.integers(0, 5), new=st.integers(0, 5), at_once=st.booleans())
def test_no_line_is_lost_when_a_file_is_cut_and_goes_on(
    tmp_path: Path, before: int, kept: int, new: int, at_once: bool
) -> None:
    folder = open_folder(tmp_path)
    first = [b"old %d\n" % number * (number + 1) for number in range(before)]
    folder.write("lines", b"".join(first))
    tail = Tail(folder, "lines")
    assert b"".join(tail.lines()) == b"".join(first)
    folder.write("lines", b"".join(first[:kept]))
    again = [] if at_once else tail.lines()
    then = [b"new line %d\n" % number for number in range(new)]
    folder.append("lines", b"".join(then))
    again += tail.lines()
    assert again[len(again) - new :] == then
    assert b"".join(first[:kept]).endswith(b"".join(again[: len(again) - new]))
