"""What a job does on the head: a real clone, real DVC, real Git, without Ray."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from jobs_project import WAIT, Submitter

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


TRIAL = """\
set -e
commit=$(git rev-parse HEAD)
baseline=$(echo $commit | cut -c1-2)/$(echo $commit | cut -c3-)
git update-ref refs/exps/$baseline/trial-1 $(git commit-tree -p $commit -m trial "$commit^{tree}")
git var GIT_AUTHOR_IDENT
"""


@pytest.fixture(scope="module")
def submitter(tmp_path_factory: pytest.TempPathFactory, params_text: str) -> Submitter:
    return Submitter.make(tmp_path_factory.mktemp("jobs"), params_text)


def test_results_come_home_and_are_fetched_instead_of_made_again(submitter: Submitter) -> None:
    project = submitter.project
    first = submitter.job("dvc", "repro")
    assert f"job: experiment {first.experiment} is at origin" in submitter.run(first)
    assert project.ran() == ["shard", "train"]
    assert not submitter.clone(first).exists()
    assert submitter.described(first)["commit"] == project.git("rev-parse", "HEAD")
    fetch_experiments(submitter)
    project.git("checkout", "-q", project.experiments()[first.experiment], "--", ".")
    submitter.push("results")
    shutil.rmtree(submitter.head)
    job = submitter.job("dvc", "exp", "run", "-S", "models.vae.latent_dim=7")
    assert "Stage 'shard' didn't change, skipping" in submitter.run(job)
    assert project.ran() == ["train"]
    assert job.experiment in submitter.at_origin()


def test_changes_and_the_submitters_name_and_other_experiments_travel(submitter: Submitter) -> None:
    project = submitter.project.path
    (project / "notes.txt").write_text("new\n")
    (project / "blob").write_bytes(bytes(range(256)))
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("epochs: 2", "epochs: 5"))
    job = submitter.job("sh", "-c", TRIAL, dirty=True)
    submitter.project.git("checkout", "-q", "params.yaml")
    (project / "notes.txt").unlink()
    (project / "blob").unlink()
    printed = submitter.run(job)
    assert f"job: applied the changes {str(job.patch)[:12]} (changes.patch, " in printed
    assert "A. User <user@example.org>" in printed  # this head's Git knows nobody
    assert "job: pushed 1 more experiments: trial-1" in printed
    assert {job.experiment, "trial-1"} <= submitter.at_origin()
    fetch_experiments(submitter)
    commit = submitter.project.experiments()[job.experiment]
    assert "epochs: 5" in submitter.project.git("show", f"{commit}:params.yaml")
    assert submitter.project.git("show", f"{commit}:notes.txt") == "new"
    assert submitter.project.run("git", "cat-file", "-s", f"{commit}:blob") == "256\n"
    kept = submitter.clone(job).parent / "changes.patch"
    assert kept.read_bytes() == job.source.patch


def test_a_command_of_another_kind_keeps_its_exit_code(submitter: Submitter) -> None:
    job = submitter.job("sh", "-c", "printf 'https://%s@example.org\\n' user:hidden; exit 7")
    printed = submitter.run(job, code=7)
    assert "user:hidden@" not in printed
    assert "https://***@example.org" in printed


def test_what_changes_nothing_gives_no_experiment(submitter: Submitter) -> None:
    job = submitter.job("true")
    assert "job: nothing changed, so there is no experiment to bring home" in submitter.run(job)
    assert job.experiment not in submitter.at_origin()


def test_results_that_cannot_be_pushed_are_an_error(submitter: Submitter, tmp_path: Path) -> None:
    job = submitter.job("dvc", "repro", "-f", "shard")
    away = tmp_path / "remote"
    shutil.move(submitter.remote, away)
    submitter.remote.write_text("a file where a folder should be\n")
    try:
        printed = submitter.run(job, code=5)
    finally:
        submitter.remote.unlink()
        shutil.move(away, submitter.remote)
    assert "job: error: `dvc push` failed, so the results are not home; they are kept on the head" in printed
    assert submitter.clone(job).exists()


def test_another_experiment_of_the_name_stays_and_the_results_are_kept(submitter: Submitter) -> None:
    project = submitter.project
    job = submitter.job("dvc", "exp", "run", "-S", "train.epochs=6", name="taken")
    reference = f"refs/exps/{job.source.commit[:2]}/{job.source.commit[2:]}/taken"
    theirs = project.git("commit-tree", "-p", "HEAD", "-m", "theirs", "HEAD^{tree}")
    project.git("push", "-q", "origin", f"{theirs}:{reference}")
    printed = submitter.run(job, code=1)
    assert "job: error: origin has another experiment taken on this commit, so the results are not home" in printed
    assert "experiment taken is at origin" not in printed
    assert submitter.clone(job).exists()
    assert project.git("ls-remote", "origin", reference).split()[0] == theirs
    project.git("push", "-q", "--delete", "origin", reference)
    assert "job: experiment taken is at origin" in submitter.run(job)


def test_an_origin_that_the_head_cannot_read_is_one_line(submitter: Submitter, tmp_path: Path) -> None:
    job = submitter.job("true", name="elsewhere")
    object.__setattr__(job.source, "origin", str(tmp_path / "nowhere.git"))
    printed = submitter.run(job, code=1)
    assert f"job: error: the head cannot read {tmp_path}/nowhere.git (git fetch: fatal: " in printed
    assert "name another address with --origin" in printed


def test_a_stopped_job_leaves_no_process(submitter: Submitter) -> None:
    job = submitter.job("dvc", "exp", "run", "-S", WAIT)
    process = submitter.start(job)
    printed = ""
    assert process.stdout is not None
    while "asleep" not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    group = [p for p in psutil.process_iter() if _group(p) == process.pid]
    assert len(group) >= 3
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "job: stopped; what was done is kept" in rest
    _, left = psutil.wait_procs(group, timeout=60)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def fetch_experiments(submitter: Submitter) -> None:
    submitter.project.git("fetch", "-q", "origin", "+refs/exps/*:refs/exps/*")


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0
