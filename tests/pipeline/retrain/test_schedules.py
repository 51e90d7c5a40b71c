"""What starts a retraining every night: the files are valid, and call a command that exists, with its exit codes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.__main__ import parse_own
from pipeline.closure import ROOT
from pipeline.retrain.night import KEPT, NOTHING_NEW, PROMOTED, DataRefused

WORKFLOW = ROOT / ".github/workflows/retrain.yml"
UNITS = ROOT / "deploy/systemd"
SERVICE = (UNITS / "vae-retrain.service").read_text()


@pytest.fixture(scope="module")
def workflow() -> Any:
    return YAML(typ="safe").load(WORKFLOW)


def script(workflow: Any, name: str) -> str:
    """The commands of a step."""
    return str(next(step["run"] for step in workflow["jobs"]["retrain"]["steps"] if step.get("name") == name))


def options(command: str) -> list[str]:
    """What follows `pipeline retrain` in a command, variables of the shell left out."""
    words = shlex.split(command.split("pipeline retrain", 1)[1].split("||")[0])
    return [word for word in words if not word.startswith("$")]


def test_the_workflow_fits_the_schema_of_github() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_has_the_history_may_do_little_and_is_never_ended_by_the_next_one(workflow: Any) -> None:
    job = workflow["jobs"]["retrain"]
    checkout = next(step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0
    assert workflow["permissions"] == {}
    assert job["permissions"] == {"contents": "write", "pull-requests": "write"}
    assert workflow["concurrency"] == {"group": "retrain", "cancel-in-progress": False}
    assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}


def test_every_action_is_pinned_and_no_input_is_pasted_into_a_script(workflow: Any) -> None:
    steps = workflow["jobs"]["retrain"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", use) for use in used)
    scripts = [step["run"] for step in steps if "run" in step]
    assert not re.findall(r"\$\{\{\s*(?:inputs|github|secrets)\.", "\n".join(scripts))


def test_the_commands_of_both_are_ones_that_there_are(workflow: Any) -> None:
    asked = workflow["jobs"]["retrain"]["steps"][3]["env"]
    from_workflow = options(script(workflow, "Retrain"))
    for more in (re.findall(r"'(--[a-z]+)'", " ".join(asked.values())), []):
        for choice in more or [""]:
            given = [*([choice] if choice else []), *from_workflow]
            assert parse_own("retrain", "pipeline.operate.retrain", given).out == Path(".runs/decision")
    started = re.search(r"^ExecStart=\S+ -m pipeline retrain (.*)$", SERVICE, re.MULTILINE)
    assert started is not None
    assert parse_own("retrain", "pipeline.operate.retrain", shlex.split(started[1])).push


@pytest.mark.parametrize(
    ("code", "succeeds"), [(PROMOTED, True), (KEPT, True), (NOTHING_NEW, True), (DataRefused.code, False), (7, False),
                           (1, False)],
)  # fmt: skip
def test_a_night_without_a_new_model_is_no_failure_of_the_workflow_or_the_unit(
    workflow: Any, tmp_path: Path, code: int, succeeds: bool
) -> None:
    """The script of the step, with a Python that ends with the code."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" > called\nexit {code}\n')
    python.chmod(0o755)
    env = {"ASKED": "--push", "FORCE": "", "GITHUB_OUTPUT": str(tmp_path / "output"), "PATH": "/usr/bin:/bin"}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script(workflow, "Retrain")]
    done = subprocess.run(bash, cwd=tmp_path, env=env, check=False)
    assert done.returncode == (0 if succeeds else code)
    assert (tmp_path / "output").read_text() == f"code={code}\n"
    assert (tmp_path / "called").read_text() == "-m pipeline retrain --push --out .runs/decision\n"
    allowed = re.search(r"^SuccessExitStatus=(.*)$", SERVICE, re.MULTILINE)
    assert allowed is not None
    assert (code == 0 or str(code) in allowed[1].split()) is succeeds


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """The units as they would be installed, with programs that are here instead of the project's."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/srv/vae-pipeline/.venv/bin/python", sys.executable)
        text = text.replace("/srv/vae-pipeline", str(ROOT)).replace("User=vae", "User=nobody")
        (tmp_path / unit.name).write_text(text)
    return [str(path) for path in sorted(tmp_path.iterdir())]


def test_the_units_are_what_systemd_takes(installed: list[str]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *installed], capture_output=True, text=True, check=False)
    about = [line for line in done.stderr.splitlines() if "vae-retrain" in line or "Unknown" in line]
    about = [line for line in about if "user nobody" not in line]  # who stands in for the user `vae` here
    assert about == []
    assert done.returncode == 0, done.stderr


def test_the_unit_is_exposed_to_little(installed: list[str]) -> None:
    service = next(path for path in installed if path.endswith(".service"))
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=50", "--json=short", service]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)
