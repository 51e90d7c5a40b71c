"""What a cluster of this project is, whoever provides the machines: versions, environment, commands, what is copied."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

CONSTRAINTS = Path("constraints.txt")
PROJECT = Path("pyproject.toml")
WATCHER = Path("pipeline/cluster/spot_watch.py")
TOKEN = "~/.ray/auth_token"
REMOTE = "~/vae-environment"  # on every node: what its environment is made from; ~/vae-pipeline is the jobs' own
VENV = "~/venv"
NODE_CACHE = "/mnt/cache"
UV = "0.13.8"
PORT = 6379
OPEN_FILES = 65536

# Of every process of Ray: the launcher carries none of these to the nodes by itself.
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
SPOT_SECONDS = 120  # from EC2's notice to the end of a spot instance


@dataclass(frozen=True, kw_only=True, slots=True)
class Versions:
    """What the nodes run, as constraints.txt says."""

    python: str
    ray: str
    torch: str
    uv: str = UV


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One line for the shell of a node, and why it is there."""

    text: str
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aws:
    """What AWS is asked for. The ids are placeholders until the user gives his own."""

    name: str = "vae-pipeline"
    region: str = "us-west-2"
    image: str = "ami-REPLACE_ME"
    subnet: str = "subnet-REPLACE_ME"
    security_group: str = "sg-REPLACE_ME"
    account: str = "account-REPLACE_ME"
    bucket: str = "bucket-REPLACE_ME"
    head: str = "m7i.xlarge"
    worker: str = "g5.xlarge"
    worker_cpus: int = 4
    worker_gpus: int = 1
    max_workers: int = 4
    idle_minutes: int = 10
    disk_gb: int = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """Machines that are there already.

    Attributes:
        venv: an environment with the dependencies that every machine has; nothing is installed then.
        head_cpus: that Ray may use on the head; 0 keeps training off it.
        worker_cpus: that Ray may use on each worker; None: all.
        object_store_mib: of each node; None: Ray's own share of its memory.
    """

    name: str = "vae-pipeline"
    head: str = "head-REPLACE_ME"
    workers: tuple[str, ...] = ("worker-1-REPLACE_ME", "worker-2-REPLACE_ME")
    ssh_user: str = "user-REPLACE_ME"
    ssh_key: str = "~/.ssh/id_ed25519"
    token: str = TOKEN
    venv: str | None = None
    head_cpus: int = 0
    worker_cpus: int | None = None
    object_store_mib: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kubernetes:
    """What a Kubernetes cluster with the KubeRay operator is asked for."""

    name: str = "vae-pipeline"
    namespace: str = "vae-pipeline"
    image: str = "registry-REPLACE_ME/vae-pipeline"
    origin: str = "https://git-REPLACE_ME/vae-pipeline.git"
    email: str = "vae-pipeline@git-REPLACE_ME"
    bucket: str = "bucket-REPLACE_ME"
    schedule: str = "30 2 * * *"
    timezone: str = "Etc/UTC"
    max_workers: int = 4
    idle_seconds: int = 300


def read_versions(constraints: Path = CONSTRAINTS) -> Versions:
    """The versions that constraints.txt pins.

    Raises:
        UserError: the file is missing, or does not say one of them.
    """
    try:
        text = constraints.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{constraints}: no such file; run from the project's folder, or restore it with Git") from None
    pinned, python = pins(text), re.search(r"^#.*\bPython (3\.\d+)", text, re.MULTILINE)
    missing = [name for name in ("ray", "torch") if name not in pinned] + ([] if python else ["the Python it is for"])
    if missing or python is None:
        raise UserError(f"{constraints}: does not say {', '.join(missing)}; restore it with Git")
    return Versions(python=python[1], ray=pinned["ray"], torch=pinned["torch"])


def pins(constraints: str) -> dict[str, str]:
    """Name in lower case -> version, of the text of constraints.txt."""
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;#]+)", constraints.lower(), re.MULTILINE))


def mounts(token: str = TOKEN, *, spot: bool = False) -> dict[str, str]:
    """Path on every node -> path here; the launcher copies them before it runs a command."""
    copied = {TOKEN: token, f"{REMOTE}/constraints.txt": str(CONSTRAINTS), f"{REMOTE}/pyproject.toml": str(PROJECT)}
    return copied | ({f"{REMOTE}/spot_watch.py": str(WATCHER)} if spot else {})
