"""`ray up`, jobs on machines that share no disk, and what is home afterwards; one cluster, the tests in this order."""

import json
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from machines import HOME, ROOT, Machine, wait_for
from rig import CLUSTER_FILE, FAMILY, USER, Rig
from ruamel.yaml import YAML

from pipeline.token import COPY

pytestmark = pytest.mark.cluster

EVALUATED = f"evaluate@{FAMILY}"
STORAGE = "storage=s3://runs/here"
SUBMIT = ("python", "-m", "pipeline", "submit", "--wait", "--ref", "HEAD")  # beside a run that changes the checkout
RUN = ("dvc", "exp", "run")


def submit(
    rig: Rig, *command: str, compute: tuple[str, ...], code: int = 0, env: Mapping[str, str] | None = None
) -> str:
    return rig.at_home(*SUBMIT, "--compute", *compute, "--", *command,
                       code=code, env=env, seconds=900)  # fmt: skip


def shown(rig: Rig, name: str) -> dict[str, Any]:
    """What `dvc exp show` at home has of an experiment."""
    rows = json.loads(rig.at_home("dvc", "exp", "show", "--json"))
    found = [
        experiment["revs"][0]["data"]
        for row in rows for experiment in row["experiments"] or [] if experiment["name"] == name
    ]  # fmt: skip
    assert len(found) == 1, rows
    data: dict[str, Any] = found[0]
    return data


def shards(rig: Rig, name: str) -> str:
    """DVC's digest of the shards of an experiment."""
    (reference,) = rig.at_home("git", "for-each-ref", "--format=%(refname)", f"refs/exps/??/*/{name}").split()
    stages = YAML(typ="safe").load(rig.at_home("git", "show", f"{reference}:dvc.lock"))["stages"]
    return str(stages["shard"]["outs"][0]["md5"])


def neg_elbo(data: Mapping[str, Any]) -> Mapping[str, float]:
    """On the test split, of baseline and best."""
    figures = data["metrics"][f"results/evaluate/{FAMILY}.json"]["data"]
    return {which: figures[which]["test"]["neg_elbo_nats"] for which in ("baseline", "best")}


def test_the_machines_share_neither_files_nor_code(rig: Rig) -> None:
    assert len(rig.nodes()) == 3
    for machine in (rig.head, *rig.workers):
        assert "ModuleNotFoundError: No module named 'pipeline'" in machine.run(
            "python", "-c", "import pipeline", code=1
        )
        assert machine.run("stat", "-c", "%a", f"{HOME}/.ray/auth_token").strip() == "600"
        assert "No such file" in machine.run("ls", str(ROOT / "pyproject.toml"), code=2)
        assert not (machine.home / "project").exists()
    (rig.workers[0].home / "here").touch()
    assert "here" in rig.workers[0].run("ls")
    assert "here" not in rig.workers[1].run("ls")


def test_a_job_on_two_nodes_gives_what_the_same_run_gives_at_home(rig: Rig) -> None:
    start = time.monotonic()
    here = subprocess.Popen(
        rig.laptop.command(*RUN, "-n", "at-home", EVALUATED, at="project", env=USER), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    printed = submit(rig, *RUN, "-n", "far-away", EVALUATED, compute=("workers=2", STORAGE))
    assert f"train {FAMILY}: 2 workers on the CPU with 1 thread each" in printed
    said, _ = here.communicate(timeout=600)
    assert here.returncode == 0, said
    rig.at_home("dvc", "exp", "pull", "origin", "far-away")
    near, far = shown(rig, "at-home"), shown(rig, "far-away")
    assert shards(rig, "far-away") == shards(rig, "at-home")
    for which, nats in neg_elbo(near).items():
        assert neg_elbo(far)[which] == pytest.approx(nats, abs=0.05)
    print(f"{time.monotonic() - start:.0f} s, -ELBO at home {neg_elbo(near)}, on the cluster {neg_elbo(far)}")


def test_the_job_service_refuses_who_has_no_token_or_a_wrong_one(rig: Rig) -> None:
    assert rig.ask("api/jobs/", None) == "HTTP 401"
    assert rig.ask("api/jobs/", "0" * 64) == "HTTP 403"
    told = rig.at_home("python", "-m", "pipeline", "jobs", "ls", code=6, env={"RAY_AUTH_TOKEN": "0" * 64})
    assert told.startswith("error: http://127.0.0.1:8265: ")
    assert len(told.splitlines()) == 1


def test_a_driver_with_a_wrong_token_or_without_one_says_so_in_one_line(rig: Rig) -> None:
    address, missing = f"{rig.head.address}:6379", "no token for a cluster (No such file or directory)"
    for given, told in (
        ({"RAY_AUTH_TOKEN": "0" * 64}, f"params.yaml: compute.address: {address} refuses this token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such"}, f"/no/such: {missing}"),
    ):
        env = {
            "PIPELINE_COMPUTE": json.dumps({"address": address, "workers": 2, "storage": "s3://runs/wrong"}),
            **given,
        }
        printed = rig.at_home("python", "-m", "pipeline", "train", "--family", FAMILY, code=6, env=env)
        assert printed.splitlines()[-1] == f"error: {told}; {COPY}"
        assert "Traceback" not in printed


def test_a_job_outlives_one_of_its_nodes(rig: Rig) -> None:
    start = time.monotonic()
    long = (*RUN, "-n", "outlived", "-S", "train.epochs=30", f"train@{FAMILY}")
    words = (
        "python",
        "-m",
        "pipeline",
        "submit",
        "--wait",
        "--ref",
        "HEAD",
        "--compute",
        "workers=[1,2]",
        STORAGE,
        "--",
        *long,
    )
    before = folders(rig)
    running = subprocess.Popen(rig.laptop.command(*words, at="project", env=USER), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    wait_for(lambda: running.poll() is not None or any(map(trains, folders(rig) - before)), "training", seconds=240)
    rig.workers[1].stop()
    killed = time.monotonic()
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert re.search(rf"train {FAMILY}: rank \d: .*; attempt 2 of 4 from step \d+", printed), printed
    assert re.search(rf"train {FAMILY}: goes on with 1 worker from step \d+", printed), printed
    rig.at_home("dvc", "exp", "pull", "origin", "outlived")
    assert shown(rig, "outlived")["params"]["params.yaml"]["data"]["train"]["epochs"] == 30
    print(f"{time.monotonic() - start:.0f} s, of which {time.monotonic() - killed:.0f} after the node went")


def folders(rig: Rig) -> set[Path]:
    """Those of runs in the object store."""
    return set((rig.store / "runs/here").glob(f"{FAMILY}-*"))


def trains(folder: Path) -> bool:
    return len(list(folder.glob("checkpoints/step-*"))) > 1


def test_ray_down_leaves_nothing_running(rig: Rig) -> None:
    """It stops the head's Ray; that of the workers ends by itself when the head has not answered for a while."""
    rig.at_home("ray", "down", "--yes", CLUSTER_FILE, seconds=180)
    assert not of_ray(rig.head)
    wait_for(lambda: not of_ray(rig.workers[0]), "the end of a worker's Ray", seconds=120, every=2)


def of_ray(machine: Machine) -> set[str]:
    return {"gcs_server", "raylet"} & set(machine.run("ps", "-eo", "comm").split())
