"""The committed cluster files are what the recipe gives, for anyone's machines too."""

import io
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cluster_files import ROOT
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from pipeline.__main__ import main, parse_own
from pipeline.cluster import commands
from pipeline.cluster.check import check
from pipeline.cluster.given import given_machines
from pipeline.cluster.recipe import Aws, Local, read_versions
from pipeline.cluster.render import aws_yaml, committed, local_yaml
from pipeline.errors import UserError

VERSIONS = read_versions(ROOT / "constraints.txt")
HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
GIVEN = ["cluster", "render", "--provider", "local", "--ssh-user", "me"]


def load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(io.StringIO(text))


@pytest.mark.parametrize("path", committed(VERSIONS), ids=str)
def test_a_committed_file_is_what_the_recipe_gives(path: Path) -> None:
    again = "run `python -m pipeline cluster render --force`, and commit"
    assert (ROOT / path).read_text(encoding="utf-8") == committed(VERSIONS)[path], again


@pytest.mark.parametrize("path", [path for path in committed(VERSIONS) if path.suffix == ".yaml"], ids=str)
def test_the_header_of_a_file_lists_what_is_to_be_filled_in(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert set(re.findall(r"[\w-]+REPLACE_ME", body)) == set(re.findall(r"[\w-]+REPLACE_ME", head))


def test_folded_commands_are_the_commands_again() -> None:
    loaded = load(aws_yaml(Aws(), VERSIONS))
    assert loaded["setup_commands"][2:4] == [command.text for command in commands.environment(VERSIONS)]
    assert loaded[WORKER] == [c.text for c in (*commands.worker_start(""), *commands.spot_watch())]


def test_versions_are_those_of_constraints_and_python_is_one_the_project_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert SpecifierSet(project["requires-python"]).contains(f"{VERSIONS.python}.0")
    assert f"ray=={VERSIONS.ray}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_no_node_shares_a_disk_or_gets_code_but_the_watcher() -> None:
    loaded = load(aws_yaml(Aws(), VERSIONS))
    assert set(loaded["file_mounts"].values()) == {
        "~/.ray/auth_token", "constraints.txt", "pyproject.toml", "pipeline/cluster/spot_watch.py",
    }  # fmt: skip
    assert not re.search(r"\b(nfs|efs|PYTHONPATH)\b", (ROOT / "cluster.yaml").read_text(), re.IGNORECASE)


def test_given_machines_enter_the_file_and_pass_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    out = tmp_path / "mine.yaml"
    options = ["--head", "10.1.0.1", "--workers", "10.1.0.2,10.1.0.3", "--venv", "/opt/env", "--worker-cpus", "1"]
    assert main([*GIVEN, *options, "--name", "lab", "--object-store-mib", "100", "--out", str(out)]) == 0
    loaded = load(out.read_text())
    assert (loaded["cluster_name"], loaded["max_workers"]) == ("lab", 2)
    assert loaded["provider"] == {"type": "local", "head_ip": "10.1.0.1", "worker_ips": ["10.1.0.2", "10.1.0.3"]}
    assert loaded["auth"]["ssh_user"] == "me"
    assert not any("install" in command for command in loaded["setup_commands"])
    assert "--num-cpus=0 --num-gpus=0 --object-store-memory=104857600" in loaded[HEAD][1]
    assert loaded[WORKER][1].endswith("--num-cpus=1 --object-store-memory=104857600")
    assert "REPLACE_ME" not in out.read_text()
    assert check(out, ROOT).wrong == ()
    assert "next: ray up" in capsys.readouterr().err


def test_a_file_that_was_filled_in_stays_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("constraints.txt", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    render = ["cluster", "render"]
    assert main(render) == 0
    filled_in, gone = tmp_path / "deploy/aws/head-policy.json", tmp_path / "cluster.yaml"
    made = filled_in.read_text()
    filled_in.write_text(made.replace("bucket-REPLACE_ME", "mine"))
    gone.unlink()
    capsys.readouterr()
    assert main(render) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: deploy/aws/head-policy.json: there, and not what would be written, so nothing was;")
    assert not gone.exists()
    assert "mine" in filled_in.read_text()
    assert main([*render, "--force"]) == 0
    assert filled_in.read_text() == made
    assert gone.exists()


@pytest.mark.parametrize("option", ["--name", "--head", "--workers", "--venv", "--head-cpus", "--out"])
def test_an_option_for_given_machines_is_refused_without_them(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["cluster", "render", option, "1"]) == 1
    line = f"error: {option}: only for machines that you name; add --provider local\n"
    assert capsys.readouterr().err == line


def test_every_address_becomes_a_worker() -> None:
    """With the autoscaler v2, N addresses start N-1 workers; what the launcher exports comes before the command."""
    loaded = load(local_yaml(Local(head="a", workers=("b", "c", "d")), VERSIONS))
    assert re.search(r"export .*RAY_enable_autoscaler_v2=0; ray start --head", loaded[HEAD][1])
    assert loaded["max_workers"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workers", "b"], "--head: expected the addresses"),
        (["--head", "a"], "--workers: expected the addresses"),
        (["--head", "a", "--workers", "b,b"], "--workers: b is named twice"),
        (["--head", "a;reboot", "--workers", "b"], "--head: expected an address"),
        (["--head", "a", "--workers", "b", "--venv", "/o p"], "--venv: expected a path"),
        (["--head", "a", "--workers", "b", "--name", "1"], "--name: expected at most 40"),
        (["--head", "a", "--workers", "b", "--worker-cpus", "-1"], "--worker-cpus: expected at least 0"),
        (["--head", "a", "--workers", "b", "--object-store-mib", "9"], "--object-store-mib: expected at least 75"),
    ],
)
def test_a_wrong_option_is_told_of_in_one_line(options: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        given_machines(parse_own("cluster", "pipeline.operate.cluster", [*GIVEN[1:], *options]))
    assert str(error.value).startswith(says)
    assert len(str(error.value).splitlines()) == 1


def test_the_policies_name_actions_and_resources() -> None:
    """Of all statements one has the resource "*": EC2's Describe actions know no other."""
    for name in ("head", "worker"):
        policy = json.loads((ROOT / f"deploy/aws/{name}-policy.json").read_text())
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert not any("*" in action for action in statement["Action"]), statement
            if "*" in statement["Resource"]:
                assert (name, statement["Action"]) == ("head", ["ec2:DescribeInstances"])


def test_the_worker_may_touch_nothing_but_the_clusters_prefix_in_s3() -> None:
    statements = json.loads((ROOT / "deploy/aws/worker-policy.json").read_text())["Statement"]
    assert {action.split(":")[0] for s in statements for action in s["Action"]} == {"s3"}
    writable = [r for s in statements if "s3:PutObject" in s["Action"] for r in s["Resource"]]
    assert writable == ["arn:aws:s3:::bucket-REPLACE_ME/vae-pipeline/runs/*"]


def test_the_head_ends_and_launches_only_what_carries_its_tag_and_passes_only_the_workers_role() -> None:
    statements = {s["Sid"]: s for s in json.loads((ROOT / "deploy/aws/head-policy.json").read_text())["Statement"]}
    tag = statements["TerminateItsOwn"]["Condition"]["StringEquals"]
    assert tag == {"aws:ResourceTag/ray-cluster-name": "vae-pipeline"}
    launch = statements["LaunchWorkers"]["Condition"]
    assert launch["StringEquals"]["aws:RequestTag/ray-cluster-name"] == "vae-pipeline"
    assert launch["StringEquals"]["ec2:InstanceType"] == Aws().worker
    assert launch["StringEquals"]["ec2:MetadataHttpTokens"] == "required"
    assert statements["GiveWorkersTheirRole"]["Resource"] == [
        "arn:aws:iam::account-REPLACE_ME:role/vae-pipeline-worker"
    ]
