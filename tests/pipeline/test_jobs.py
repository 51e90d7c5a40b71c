"""The table of jobs, and how one of them is meant."""

import re
from datetime import datetime

import pytest

from pipeline.errors import UserError
from pipeline.jobs.cluster import Record, chosen
from pipeline.jobs.following import BEGUN, KEPT, JobFailed, Log, is_home, tell_end
from pipeline.operate.jobs import table


def record(id: str, status: str = "SUCCEEDED", code: int | None = 0, **changes: object) -> Record:
    values = {
        "message": "", "started": 1000.0, "ended": 1090.0, "command": "dvc exp run",
        "metadata": {"home": "origin", "experiment": id},
    }  # fmt: skip
    return Record(id=id, status=status, code=code, **(values | changes))  # type: ignore[arg-type]


def test_a_line_a_job() -> None:
    running = record("exp-aaaaaaaaaaaa-22222222", "RUNNING", None, ended=None, command="dvc repro")
    lines = list(table([record("exp-aaaaaaaaaaaa-11111111", "FAILED", 3), running], now=4700.0))
    started = datetime.fromtimestamp(1000).strftime("%Y-%m-%d %H:%M:%S")
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["id", "status", "exit", "started", "took", "command"],
        ["exp-aaaaaaaaaaaa-11111111", "failed", "3", started, "1m30s", "dvc exp run"],
        ["exp-aaaaaaaaaaaa-22222222", "running", started, "1h01m", "dvc repro"],
    ]


def test_a_job_is_meant_by_a_unique_part_of_its_id() -> None:
    ids = ["exp-aaaaaaaaaaaa-11111111", "exp-aaaaaaaaaaaa-22222222", "exp-bbbbbbbbbbbb-33333333", "nightly"]
    records = [record(id) for id in ids]
    for beginning, found in (("exp-b", 2), ("b", 2), ("22222222", 1), (ids[0], 0), ("nig", 3)):
        assert chosen(records, beginning).id == ids[found]
    with pytest.raises(UserError, match=f"aaaa: 2 jobs begin so: {ids[0]}, {ids[1]}"):
        chosen(records, "aaaa")
    with pytest.raises(UserError, match="zzz: no job's id begins so; see: python -m pipeline jobs ls"):
        chosen(records, "zzz")


def test_the_end_of_a_job_is_told_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    tell_end(record("exp-a-1"), pushed=True)
    assert capsys.readouterr().out == "dvc exp pull origin exp-a-1\ndvc exp show\n"
    tell_end(record("exp-a-1"), pushed=False)
    assert capsys.readouterr().out == ""
    for status, code, ends_with in (
        ("FAILED", 3, 3),
        ("FAILED", 137, 137),
        ("STOPPED", None, 143),
        ("FAILED", None, 6),
    ):
        with pytest.raises(JobFailed) as failed:
            tell_end(record("exp-a-1", status, code, message="the supervisor died"), pushed=False)
        assert failed.value.code == ends_with
    assert str(failed.value) == "exp-a-1 could not run: the supervisor died"


def test_of_a_long_log_the_end_is_kept_and_only_the_last_attempt_counts(capsys: pytest.CaptureFixture[str]) -> None:
    log, home = Log(skip=5), "job: experiment exp-a-1 is at origin\n"
    parts = ["skip\n", home, BEGUN[:9], BEGUN[9:], *(["x" * 999 + "\n"] * 200)]
    for part in parts:
        log.take(part)
    assert capsys.readouterr().out == "".join(parts[1:])
    assert len(log.text) <= KEPT
    assert not is_home("".join(parts))
    log.take(home[:20])
    log.take(home[20:])
    assert is_home(log.text)
