"""The recipe as files: cluster.yaml for AWS, its variants for given machines and for Kubernetes, policies for AWS."""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.cluster import commands
from pipeline.cluster.policies import Policy, head_policy, worker_policy
from pipeline.cluster.recipe import VENV, Aws, Command, Kubernetes, Local, Versions, mounts, read_versions

WIDTH = 118


def local_yaml(local: Local, versions: Versions) -> str:
    """A cluster file for machines that are there already."""
    installed = commands.given(local.venv) if local.venv else [*commands.packages(), *commands.environment(versions)]
    venv = local.venv or VENV
    return _fill(
        "local.yaml.j2",
        local=local,
        placeholders="REPLACE_ME" in local.head,
        mounts=mounts(local.token),
        setup=[*commands.token(), *installed, *commands.shell(venv)],
        head_start=commands.head_start(commands.local_options(local, head=True), venv, RAY_enable_autoscaler_v2="0"),
        worker_start=commands.worker_start(commands.local_options(local, head=False), venv),
    )


def aws_yaml(aws: Aws, versions: Versions) -> str:
    """A cluster file for AWS: nodes come and go with the demand."""
    return _fill(
        "aws.yaml.j2",
        aws=aws,
        minor=versions.ray.rpartition(".")[0],
        mounts=mounts(spot=True),
        setup=[*commands.packages(), *commands.token(), *commands.environment(versions), *commands.shell(),
               *commands.disk()],
        head_setup=commands.autoscaler(),
        worker_setup=commands.instance_store(),
        head_start=commands.head_start(""),
        worker_start=[*commands.worker_start(""), *commands.spot_watch()],
    )  # fmt: skip


def kubernetes_yaml(kind: str, kube: Kubernetes, versions: Versions) -> str:
    """A `rayjob` or a `raycronjob` for the KubeRay operator."""
    return _fill(f"{kind}.yaml.j2", kube=kube, versions=versions)


def committed(versions: Versions | None = None) -> dict[Path, str]:
    """Path in the project -> text, of every file that is rendered and committed."""
    versions, aws, kube = versions or read_versions(), Aws(), Kubernetes()
    return {
        Path("cluster.yaml"): aws_yaml(aws, versions),
        Path("deploy/cluster-local.yaml"): local_yaml(Local(), versions),
        Path("deploy/rayjob.yaml"): kubernetes_yaml("rayjob", kube, versions),
        Path("deploy/raycronjob.yaml"): kubernetes_yaml("raycronjob", kube, versions),
        Path("deploy/Dockerfile"): _fill("Dockerfile.j2", versions=versions),
        Path("deploy/aws/head-policy.json"): _json(head_policy(aws)),
        Path("deploy/aws/worker-policy.json"): _json(worker_policy(aws)),
    }


def _json(value: Policy) -> str:
    return json.dumps(value, indent=2) + "\n"


def _fill(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.cluster"), undefined=StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(commands=_sequence, mapping=_mapping)
    return environment.get_template(template).render(**values)


def _mapping(values: Mapping[str, str]) -> str:
    return "\n".join(f"  {key}: {value}" for key, value in values.items())


def _sequence(items: Iterable[Command]) -> str:
    """A YAML list of commands, long ones folded, each below the comment that says why."""
    lines: list[str] = []
    for item in items:
        lines += [f"  # {line}" for line in textwrap.wrap(item.why, WIDTH - 4)]
        if len(item.text) <= WIDTH - 4 and re.fullmatch(r"[A-Za-z~][^:#]*", item.text):
            lines.append(f"  - {item.text}")
        else:
            lines += ["  - >-", *(f"    {line}" for line in _folded(item.text))]
    return "\n".join(lines)


def _folded(text: str) -> list[str]:
    """Lines that YAML's `>-` joins to `text` again."""
    lines = textwrap.wrap(text, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    if " ".join(lines) != text:
        raise ValueError(f"cannot be folded: {text!r}")
    return lines
