"""Jobs on a real Ray head: true exit codes, one job for one submission, tokens, logs and stops."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs_project import FAIL, WAIT, Submitter
from ray_head import Head, ray_head

from pipeline.__main__ import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Desk:
    """Where the user sits: the project, and a cluster that the environment names."""

    submitter: Submitter
    head: Head
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints, without notes; it must end with `code`."""
        self.capsys.readouterr()
        ended = main(arguments)
        out, err = self.capsys.readouterr()
        assert ended == code, f"{arguments} ended with {ended}:\n{out}{err}"
        told = [line for line in err.splitlines(keepends=True) if not line.startswith("note: ")]
        return "".join([*told[:1], out, *told[1:]])

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """The same in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments], text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, params_text: str) -> Iterator[tuple[Submitter, Head]]:
    submitter = Submitter.make(tmp_path_factory.mktemp("jobs"), params_text)
    with ray_head(submitter.environment) as head:
        yield submitter, head


@pytest.fixture
def desk(place: tuple[Submitter, Head], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    submitter, head = place
    monkeypatch.chdir(submitter.project.path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
    return Desk(submitter, head, capsys)


def test_a_job_brings_its_experiment_home_and_is_not_done_twice(desk: Desk) -> None:
    submit = ("submit", "--compute", "workers=2", "--wait", "--", "dvc", "exp", "run", "-S", "train.epochs=4")
    printed = desk.run(*submit)
    id = re.findall(r"^(exp-[0-9a-f]{12}-[0-9a-f]{8}) submitted to", printed, re.MULTILINE)[0]
    assert printed.endswith(f"dvc exp pull origin {id}\ndvc exp show\n{id} succeeded; its results at home:\n")
    assert desk.submitter.project.ran() == ["shard", "train"]
    assert desk.submitter.shown(id)["train.epochs"] == "4"
    again = desk.run(*submit)
    assert again.startswith(f"{id} has succeeded already; nothing was submitted\n")
    assert f"\ndvc exp pull origin {id}\ndvc exp show\n" in again
    assert desk.submitter.project.ran() == []
    assert desk.head.token not in printed
    assert f"{id}  succeeded  0 " in desk.run("jobs", "ls")


def test_what_ray_knows_of_a_job_holds_no_secret_and_its_workers_get_no_folder(desk: Desk) -> None:
    show = "import os; print(os.environ['PIPELINE_COMPUTE'], os.environ['RAY_JOB_CONFIG_JSON_ENV_VAR'])"
    printed = desk.run("submit", "--wait", "--compute", "workers=3", "--", "python", "-c", show)
    compute, config = re.findall(r'^(\{"address".*?\}) (\{.*\})$', printed, re.MULTILINE)[0]
    assert json.loads(compute) == {"address": "auto", "workers": 3}
    assert json.loads(config)["runtime_env"] == {}
    assert json.loads(config)["metadata"]["compute"] == compute
    assert desk.head.token not in printed
    again = desk.run("submit", "--compute", "workers=3", "--", "python", "-c", show)
    assert re.fullmatch(r"(exp-\S+) has succeeded already; nothing was submitted\n\1 succeeded\n", again)


def test_the_code_of_a_stage_that_fails_comes_back_and_the_job_is_started_again(desk: Desk) -> None:
    submit = ("submit", "--wait", "--", "dvc", "exp", "run", "-S", FAIL)
    printed = desk.run(*submit, code=3)
    assert re.search(r"^error: exp-\S+ failed with exit code 3; see its log", printed.splitlines()[-1])
    assert desk.submitter.project.ran() == ["train"]  # its shards are in the cache of all jobs
    (desk.submitter.head.parent / "mended").touch()
    again = desk.run(*submit)
    assert "failed with exit code 3 before; it is started again" in again.splitlines()[0]
    assert "exited with 3" not in again
    assert "job: goes on in " in again
    assert desk.submitter.project.ran() == ["train"]


def test_a_wrong_token_is_refused_in_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 8)
    for command in (("submit", "--", "dvc", "repro"), ("jobs", "ls")):
        printed = desk.run(*command, code=6)
        assert re.fullmatch(
            rf"error: {desk.head.address}: the cluster refuses the token \(HTTP 40[13]\); .*\n", printed
        )


def test_a_job_runs_on_after_ctrl_c_and_can_be_followed_and_stopped(desk: Desk) -> None:
    following = desk.start("submit", "--wait", "--", "dvc", "exp", "run", "-S", WAIT)
    assert following.stdout is not None
    printed = ""
    while "asleep" not in printed:
        line = following.stdout.readline()
        assert line, printed
        printed += line
    following.send_signal(signal.SIGINT)
    rest, _ = following.communicate(timeout=120)
    assert following.returncode == 130
    id = re.findall(r"(exp-\S+) runs on; follow it: python -m pipeline jobs logs -f \1; stop it: ", rest)[0]
    assert desk.run("submit", "--", "dvc", "exp", "run", "-S", WAIT).splitlines() == [
        f"{id} runs already; nothing was submitted", f"follow it: python -m pipeline jobs logs -f {id}"
    ]  # fmt: skip
    assert "asleep" in desk.run("jobs", "logs", id[-8:])
    stopped = desk.run("jobs", "stop")
    assert stopped == f"{id} stopped; the same submission goes on from there\n"
    assert not _sleeping(desk.submitter.clone_of(id))
    printed = desk.run("jobs", "logs", "-f", id, code=143)
    assert f"error: {id} was stopped; the same submission goes on from there\n" in printed
    assert "job: stopped; what was done is kept" in printed
    assert f"error: {id}: stopped already, so there is nothing to stop\n" == desk.run("jobs", "stop", id, code=1)


def _sleeping(clone: Path) -> list[str]:
    """Processes that still work in a clone."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found += [os.readlink(link)]
        except OSError:
            continue
    return [place for place in found if place.startswith(str(clone))]
