"""deploy/job.sh, which runs a command on Kubernetes: against a real Git repository and a real DVC remote."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from cluster_files import CRON, ROOT
from ruamel.yaml import YAML

STAGE = """\
stages:
  make:
    cmd: cp in out
    deps: [in]
    outs: [out]
"""
REMOTE = "[core]\n    remote = storage\n['remote \"storage\"']\n    url = {}\n"


def of_the_head() -> dict[str, str]:
    """What the committed file says to Git on the head: all that it knows there."""
    spec = YAML(typ="safe").load(ROOT / CRON)["spec"]["jobTemplate"]["rayClusterSpec"]
    (container,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"] if each["name"].startswith("GIT_")}


GIT = of_the_head()


def run(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        **GIT,
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        **more,
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_job_runs_in_a_clone_of_the_ref_and_sends_its_experiment_home(tmp_path: Path) -> None:
    home, origin, elsewhere = tmp_path / "home", tmp_path / "origin.git", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    (home / "in").write_text("1")
    (home / "dvc.yaml").write_text(STAGE)
    (home / "config").write_text(REMOTE.format(tmp_path / "remote"))
    script = f"""set -e
        git init -q -b main . && dvc init -q && mv config .dvc/config
        git add -A && git commit -q -m first && git clone -q --bare . {origin} && git remote add origin {origin}"""
    made = run(home, "sh", "-c", script)
    assert made.returncode == 0, made.stderr
    where = {"PIPELINE_ORIGIN": str(origin), "PIPELINE_REF": "main", "TMPDIR": str(elsewhere)}
    known = "git -c user.useConfigOnly=true var GIT_COMMITTER_IDENT > /dev/null"  # without it, nothing is retrained
    command = f"{known} && echo 2 > in && dvc exp run -q -n from-the-job"
    job = run(elsewhere, "sh", str(ROOT / "deploy/job.sh"), "sh", "-c", command, **where)
    assert job.returncode == 0, job.stderr
    assert not list(elsewhere.iterdir())  # the clone is gone
    refs = run(origin, "git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps").stdout.split()
    assert refs == ["from-the-job"]
    made_by = run(origin, "git", "log", "-1", "--format=%an %ae %cn %ce", "--glob=refs/exps").stdout.split()
    assert made_by == ["vae-pipeline", "vae-pipeline@git-REPLACE_ME"] * 2
    digest = hashlib.md5(b"2\n", usedforsecurity=False).hexdigest()
    assert (tmp_path / "remote/files/md5" / digest[:2] / digest[2:]).read_text() == "2\n"


def test_a_command_that_fails_is_the_jobs_own_exit_code(tmp_path: Path) -> None:
    assert run(tmp_path, "sh", "-c", "git init -q . && git commit -q --allow-empty -m first").returncode == 0
    where = {"PIPELINE_ORIGIN": str(tmp_path), "PIPELINE_REF": "HEAD"}
    assert run(tmp_path, "sh", str(ROOT / "deploy/job.sh"), "sh", "-c", "exit 12", **where).returncode == 12
