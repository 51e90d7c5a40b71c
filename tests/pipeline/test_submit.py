"""What a job is, and what is refused before any cluster is asked."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from answering import answering
from dvc_project import TinyProject
from jobs_project import Submitter

from pipeline.__main__ import main
from pipeline.addresses import without_passwords
from pipeline.errors import UserError
from pipeline.jobs.access import Access
from pipeline.jobs.command import Command
from pipeline.jobs.source import Source
from pipeline.jobs.spec import Job
from pipeline.operate.submit import compute_of
from pipeline.secret import secret_in

UNREACHABLE = "http://127.0.0.1:9"  # nothing may be asked of it here: that would be another message


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, params_text: str) -> Submitter:
    return Submitter.make(tmp_path_factory.mktemp("jobs"), params_text)


@pytest.fixture
def submitter(made: Submitter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submitter]:
    """The project with the commit that it began with, as the current folder."""
    monkeypatch.chdir(made.project.path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    before = made.project.git("rev-parse", "HEAD")
    yield made
    made.project.git("reset", "-q", "--hard", before)
    made.project.git("clean", "-qfd")


@pytest.fixture
def refused(submitter: Submitter, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which `submit` ends."""

    def run(*arguments: str, code: int = 1) -> str:
        assert main(["submit", "--address", UNREACHABLE, *arguments]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1, lines
        return lines[0].removeprefix("error: ")

    return run


RUN = ("--", "dvc", "exp", "run")


def test_a_command_is_needed(refused: Callable[..., str]) -> None:
    assert refused() == (
        "submit: nothing to run after `--`; for instance: python -m pipeline submit --wait -- dvc exp run"
    )
    assert "put experiments off" in refused("--", "dvc", "exp", "run", "--queue")


def test_uncommitted_changes_are_named(submitter: Submitter, refused: Callable[..., str]) -> None:
    for name in "abcde":
        (submitter.project.path / name).touch()
    line = refused(*RUN)
    assert line == "uncommitted changes: a, b, c and 2 more; commit them, or send them along with --dirty"
    assert refused("--dirty", "--ref", "HEAD", *RUN).startswith("--dirty: the changes are to what is checked out")


def test_a_commit_that_is_not_at_origin_is_refused(submitter: Submitter, refused: Callable[..., str]) -> None:
    (submitter.project.path / "new").touch()
    submitter.project.commit("not pushed")
    commit = submitter.project.git("rev-parse", "HEAD")
    assert refused(*RUN) == (
        f"commit {commit[:12]} is not at origin ({submitter.origin}); push it: git push origin HEAD"
    )
    assert refused("--ref", "HEAD~1", *RUN, code=6).startswith(f"{UNREACHABLE}: no Ray cluster answers")


def test_a_commit_that_others_have_built_on_is_found(submitter: Submitter, tmp_path: Path) -> None:
    other = tmp_path / "other"
    submitter.project.git("clone", "-q", str(submitter.origin), str(other))
    project = TinyProject(other, tmp_path / "ran")
    (other / "theirs").touch()
    project.git("-c", "user.name=B", "-c", "user.email=b@example.org", "add", "-A")
    project.git("-c", "user.name=B", "-c", "user.email=b@example.org", "commit", "-q", "-m", "theirs")
    project.git("push", "-q", "origin", "HEAD:main")
    try:
        source = Source.of(submitter.project.path)
    finally:
        project.git("push", "-q", "--force", "origin", f"{submitter.project.git('rev-parse', 'HEAD')}:main")
    assert source.commit == submitter.project.git("rev-parse", "HEAD")


def test_an_unknown_revision_is_refused(refused: Callable[..., str]) -> None:
    assert refused("--ref", "nope", *RUN) == "--ref nope: no such commit here; see `git log --all`"


def test_without_a_repository_origin_or_remote_it_says_what_to_do(
    submitter: Submitter, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_text: str
) -> None:
    config = submitter.project.path / ".dvc" / "config"
    text = config.read_text()
    config.write_text("[core]\n    analytics = false\n")
    submitter.push("no remote")
    assert "no DVC remote in the commit, so results could not come home; add one and commit" in refused(*RUN)
    config.write_text(text)
    assert "the DVC remote 'store'" not in refused("--dirty", *RUN, code=6)
    config.write_text(text.replace(str(submitter.remote), "../store"))
    assert "the DVC remote 'store' is the folder ../store, which would be one of the head's" in refused("--dirty", *RUN)
    assert "no DVC remote 'stor' in the commit; did you mean 'store'?" in refused("--dirty", "--remote", "stor", *RUN)
    submitter.project.git("remote", "rename", "origin", "other")
    assert "no Git remote `origin`, from which the head could clone; add it" in refused("--dirty", *RUN)
    submitter.project.git("remote", "rename", "other", "origin")
    (tmp_path / "params.yaml").write_text(params_text)
    monkeypatch.chdir(tmp_path)
    assert refused(*RUN).startswith(f"{tmp_path}: no Git repository, so there is no commit to run")


def test_an_origin_that_does_not_answer_is_told(submitter: Submitter, refused: Callable[..., str]) -> None:
    submitter.project.git("remote", "set-url", "origin", f"{submitter.origin}-gone")
    try:
        line = refused(*RUN)
    finally:
        submitter.project.git("remote", "set-url", "origin", str(submitter.origin))
    assert line.startswith(f"origin ({submitter.origin}-gone) does not answer: ")


def test_the_address_for_the_head_is_not_asked_here(submitter: Submitter) -> None:
    there = "https://127.0.0.1:9/for-the-head.git"
    source = Source.of(submitter.project.path, origin=there)
    source.check_name("free")
    assert (source.origin, source.place, source.home) == (there, str(submitter.origin), "origin")
    submitter.project.git("remote", "rename", "origin", "other")
    try:
        with pytest.raises(UserError, match=rf"origin \({there}\) does not answer"):
            Source.of(submitter.project.path, origin=there)
        alone = Source.of(submitter.project.path, origin=str(submitter.origin))
    finally:
        submitter.project.git("remote", "rename", "other", "origin")
    assert alone.origin == alone.place == alone.home == str(submitter.origin)


def test_settings_are_checked_before_anything_is_sent(
    submitter: Submitter, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--compute workerz" in refused("--compute", "workerz=2", *RUN)
    assert "did you mean 'workers'?" in refused("--compute", "workerz=2", *RUN)
    assert refused("--compute", "workers=0", *RUN).startswith("--compute workers: expected auto, an integer of at le")
    assert refused("--compute", "workers", *RUN) == "--compute workers: expected KEY=VALUE; COMMAND comes after `--`"
    assert refused("--compute", "storage=2026-08-01", *RUN) == (
        "--compute storage=2026-08-01: a date to YAML; quote it: 'storage=\"2026-08-01\"'"
    )
    assert compute_of(['storage="2026-08-01"'])["storage"] == "2026-08-01"
    monkeypatch.delenv("PIPELINE_COMPUTE", raising=False)
    given = compute_of(["workers=[1, 2]", "storage=s3://bucket/runs", "trial_cpus=0.5", "shards=null"])
    assert given == {
        "address": "auto", "workers": [1, 2], "storage": "s3://bucket/runs", "trial_cpus": 0.5, "shards": None
    }  # fmt: skip
    assert "PIPELINE_COMPUTE" not in os.environ


def test_secrets_do_not_leave_with_a_job(submitter: Submitter, refused: Callable[..., str]) -> None:
    path = submitter.project.path
    (path / "notes").write_text("key = AKIA" + "A2B4C6D8E0F2G4H6\n")
    assert refused("--dirty", *RUN).startswith("--dirty: notes holds what looks like an AWS access key")
    (path / "notes").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert "notes holds what looks like a private key" in refused("--dirty", *RUN)
    (path / "notes").rename(path / ".env")
    assert refused("--dirty", *RUN).startswith("--dirty: .env is a file for secrets, which must not leave this machine")
    (path / ".env").unlink()
    assert "the command holds what looks like a password in an address" in refused(*RUN, "https://me:pass@example.org")
    told = refused("--compute", "storage=s3://me:secret@bucket/runs", *RUN)
    assert told.startswith("--compute storage: expected an address without user or password")
    assert "secret@" not in told


def test_the_users_index_stays_as_it_is(submitter: Submitter) -> None:
    path = submitter.project.path
    (path / "staged").write_text("one\n")
    submitter.project.git("add", "staged")
    (path / "staged").write_text("two\n")
    (path / "untracked").write_text("three\n")
    index, objects = (path / ".git/index").read_bytes(), sorted((path / ".git/objects").rglob("*"))
    patch = Source.of(path, dirty=True).patch.decode()
    assert "+two" in patch
    assert "+three" in patch
    assert "+one" not in patch
    assert (path / ".git/index").read_bytes() == index
    assert sorted((path / ".git/objects").rglob("*")) == objects


def test_a_job_is_its_commit_command_settings_and_changes(submitter: Submitter) -> None:
    job = submitter.job("dvc", "exp", "run")
    commit = submitter.project.git("rev-parse", "HEAD")
    assert job.id == submitter.job("dvc", "exp", "run").id
    assert job.id.startswith(f"exp-{commit[:12]}-")
    assert job.experiment == job.id
    others = {
        submitter.job("dvc", "exp", "run", "-f").id,
        submitter.job("dvc", "exp", "run", name="mine").id,
        Job.of(job.source, job.command, {"address": "auto", "workers": 2}, None).id,
    }
    (submitter.project.path / "new").touch()
    others.add(submitter.job("dvc", "exp", "run", dirty=True).id)
    assert len(others | {job.id}) == 5


def test_what_is_told_of_a_job_holds_no_secret(submitter: Submitter, tmp_path: Path) -> None:
    submitter.project.git("remote", "set-url", "origin", f"file://me:hidden-word@{submitter.origin}")
    submitter.project.git("config", f"url.{submitter.origin}.insteadOf", f"file://me:hidden-word@{submitter.origin}")
    try:
        job = submitter.job("dvc", "exp", "run")
    finally:
        submitter.project.git("remote", "set-url", "origin", str(submitter.origin))
    job.write(tmp_path / "sent")
    sent = [path.read_text() for path in (tmp_path / "sent").rglob("*") if path.is_file()]
    assert len(sent) >= 6
    for text in (*sent, *job.metadata.values(), *job.environment.values(), repr(job)):
        assert "hidden-word" not in text
        assert "a-token" not in text
    assert job.environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("dvc exp run", "dvc exp run --pull --allow-missing --name N"),
        ("dvc exp run -n mine -S a=1", "dvc exp run --pull --allow-missing -n mine -S a=1"),
        ("dvc -v exp run --pull", "dvc -v exp run --allow-missing --name N --pull"),
        ("dvc repro train", "dvc repro --pull --allow-missing train"),
        ("python -m dvc experiments run", "python -m dvc experiments run --pull --allow-missing --name N"),
        ("python -m dvc.__main__ exp run", "python -m dvc.__main__ exp run --pull --allow-missing --name N"),
        ("python -W dvc venv/bin/dvc.exe repro", "python -W dvc venv/bin/dvc.exe repro --pull --allow-missing"),
        ("dvc push", "dvc push"),
        ("make repro", "make repro"),
    ],
)
def test_a_command_is_made_to_run_in_a_fresh_clone(given: str, run: str) -> None:
    assert Command.of(given.split()).in_clone("N") == run.split()


def test_the_name_of_an_experiment_is_given_once(submitter: Submitter) -> None:
    assert submitter.job("dvc", "exp", "run", "--name=mine").experiment == "mine"
    with pytest.raises(UserError, match="the command itself names its experiment mine; leave one out"):
        submitter.job("dvc", "exp", "run", "-n", "mine", name="other")
    with pytest.raises(UserError, match="--name a/b: expected letters"):
        submitter.job("dvc", "exp", "run", name="a/b")


def test_a_name_that_origin_has_is_refused(submitter: Submitter) -> None:
    source = Source.of(submitter.project.path)
    reference = f"refs/exps/{source.commit[:2]}/{source.commit[2:]}/taken"
    submitter.project.git("push", "-q", "origin", f"HEAD:{reference}")
    source.check_name("free")
    with pytest.raises(UserError, match="--name taken: origin has an experiment of this name"):
        source.check_name("taken")


def test_a_token_must_be_there_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    with pytest.raises(UserError, match=f"{path}: no token for a cluster"):
        Access.of(None)
    path.parent.mkdir()
    path.write_text("hidden-word\n")
    path.chmod(0o644)
    with pytest.raises(UserError, match=rf"others can read the token \(mode 0644\); `chmod 600 {path}`"):
        Access.of(None)
    path.chmod(0o600)
    assert Access.of(None) == Access("http://127.0.0.1:8265", "hidden-word")
    assert "hidden-word" not in repr(Access.of(None))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://head.example.org:8265/")
    assert Access.of(None).address == "https://head.example.org:8265"


def test_a_token_does_not_travel_in_clear_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden-word")
    with pytest.raises(UserError, match="the token would travel in clear text; tunnel the port"):
        Access.of("http://10.0.0.1:8265")
    assert Access.of("http://10.0.0.1:8265", plain_http=True).address == "http://10.0.0.1:8265"
    assert Access.of("https://10.0.0.1:8265").address == "https://10.0.0.1:8265"


@pytest.mark.parametrize(
    "address", ["ray://10.0.0.1:10001", "http://head:82a65", "http://127.0.0.1:82a65", "http://[::1"]
)
def test_what_is_no_address_is_one_line(refused: Callable[..., str], address: str) -> None:
    assert refused("--address", address, *RUN) == (
        f"--address {address}: expected http://HOST:PORT of the cluster's dashboard"
    )
    assert "word" not in refused("--address", "http://me:a/word@head:8265", *RUN)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no Ray cluster answers (SSH-2.0-OpenSSH_9.2"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "what answers /api/authentication_mode is not Ray's dashboard (Expecting"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "what answers /api/authentication_mode is not Ray's dashboard (a value of JSON"),
        (b"HTTP/1.0 404 No\r\n\r\n", "answers /api/authentication_mode with HTTP 404, so it is not Ray's dashboard"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"authentication_mode": "disabled"}', "this cluster asks for no token"),
    ],
    ids=["ssh", "html", "list", "404", "open"],
)
def test_what_answers_and_is_no_cluster_is_one_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, answer: bytes, says: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not on the way to this machine itself
    with answering(answer) as address:
        assert refused("--address", address, *RUN, code=6).startswith(f"{address}: {says}")


def test_addresses_lose_their_passwords() -> None:
    assert without_passwords("https://me:word@example.org/a.git") == "https://example.org/a.git"
    assert without_passwords("https://word@example.org/a.git") == "https://example.org/a.git"
    assert without_passwords("ssh://git@example.org/a.git") == "ssh://git@example.org/a.git"
    assert without_passwords("ssh://git:word@example.org/a.git") == "ssh://example.org/a.git"
    assert without_passwords("git@example.org:a.git") == "git@example.org:a.git"
    text = "'https://me:word@example.org/' and http://HOST:PORT, s3://key:word@bucket/x, ssh://git@example.org/a"
    shown = "'https://example.org/' and http://HOST:PORT, s3://bucket/x, ssh://git@example.org/a"
    assert without_passwords(text) == shown
    assert secret_in("nothing here: s3://bucket/path, me@example.org, ssh://git@example.org") is None
    assert secret_in("export RAY_AUTH_TOKEN=$(cat token) RAY_AUTH_TOKEN_PATH=token") is None
    assert secret_in("RAY_AUTH_TOKEN: 0123") == "a token of Ray's"
