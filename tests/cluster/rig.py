"""A cluster as its user meets it: a laptop, a head and two workers that share no disk, an object store, an origin."""

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_project import Project, commit, copy_project, set_params
from machines import ENVIRONMENT, Machine, Network, listening, make_key, wait_for
from s3_server import ID, SECRET, rclone

STORE_PORT, GIT_PORT = 9000, 9418
FAMILY = "cvae"
CLUSTER_FILE = "../cluster.yaml"
USER = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
FILES = {  # of every home
    ".gitconfig": "[user]\nname = A User\nemail = user@example.org\n",
    ".bashrc": (  # how long a lost node is waited for, and a head
        "export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=8 RAY_gcs_rpc_server_reconnect_timeout_s=20\n"
    ),
    ".aws/config": f"[default]\nregion = us-east-1\nendpoint_url = http://{Network.address}:{STORE_PORT}\n",
    ".aws/credentials": f"[default]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n",
}


@dataclass(frozen=True)
class Rig:
    """Everything, with Ray up.

    Attributes:
        project: the user's checkout on the laptop, as seen from outside.
        store: the folder behind the object store.
        raised: what `ray up` printed.
    """

    network: Network
    laptop: Machine
    head: Machine
    workers: Sequence[Machine]
    project: Project
    store: Path
    token: str
    raised: str

    def at_home(self, *command: str, env: Mapping[str, str] | None = None, **options: Any) -> str:
        """What a command in the user's checkout prints."""
        return self.laptop.run(*command, at="project", env={**USER, **(env or {})}, **options)

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's living nodes, as the head's dashboard tells of them."""
        answer = self.ask("nodes?view=summary", self.token)
        found = json.loads(answer)["data"]["summary"] if answer.startswith("{") else []
        return [node for node in found if node["raylet"].get("state") == "ALIVE"]

    def ask(self, path: str, token: str | None) -> str:
        """The body that the head's dashboard answers; `HTTP` and the status of a refusal; empty: no answer."""
        script = (
            "import sys, urllib.error, urllib.request as r\n"
            "headers = {'Authorization': f'Bearer {sys.argv[2]}'} if sys.argv[2] else {}\n"
            "try: print(r.urlopen(r.Request(sys.argv[1], headers=headers), timeout=20).read().decode())\n"
            "except urllib.error.HTTPError as error: print('HTTP', error.code)\n"
            "except urllib.error.URLError: pass\n"
        )
        url = f"http://127.0.0.1:8265/{path}"
        return self.head.run("python", "-S", "-c", script, url, token or "").strip()


@contextmanager
def raised(folder: Path) -> Iterator[Rig]:
    """A rig for the length of the block; nothing is left of it."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        log = stack.enter_context((folder / "servers").open("w"))
        store, project = folder / "store", _project(folder)
        for bucket in ("dvc", "runs"):
            (store / bucket).mkdir(parents=True)
        _serve(network, folder, store, log)
        token = secrets.token_hex(32)
        laptop, head, *workers = _machines(stack, network, folder, token)
        rig = Rig(network, laptop, head, workers, project, store, token, "")
        printed = _up(rig)
        stack.callback(_tunnel(rig).wait)
        stack.callback(laptop.stop)
        yield Rig(network, laptop, head, workers, project, store, token, printed)


def _project(folder: Path) -> Project:
    """The user's checkout on the laptop, with a bare repository as its origin."""
    path = folder / "laptop/home/project"
    path.mkdir(parents=True)
    project = copy_project(path)
    set_params(path, {"families": [FAMILY]})
    remote = ("python", "-m", "dvc", "remote")
    project.run(*remote, "add", "-d", "store", "s3://dvc/cache")
    project.run(*remote, "modify", "store", "endpointurl", f"http://{Network.address}:{STORE_PORT}")
    commit(project, "one family, a remote")
    (folder / "git").mkdir()
    project.run("git", "clone", "-q", "--bare", ".", str(folder / "git/project.git"))
    project.run("git", "remote", "add", "origin", f"git://{Network.address}/project.git")
    project.run("git", "config", "branch.main.remote", "origin")
    project.run("git", "config", "branch.main.merge", "refs/heads/main")
    return project


def _serve(network: Network, folder: Path, store: Path, log: Any) -> None:
    address = f"{network.address}:{STORE_PORT}"
    s3 = [rclone(), "serve", "s3", "--auth-key", f"{ID},{SECRET}", "--addr", address, "--config", "/dev/null", store]
    network.serve(map(str, s3), STORE_PORT, log)
    folder_of_git = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    git = [
        f"{folder_of_git}/git-daemon",
        "--export-all",
        "--enable=receive-pack",
        f"--base-path={folder / 'git'}",
        "--reuseaddr",
    ]
    network.serve([*git, f"--listen={network.address}", str(folder / "git")], GIT_PORT, log)


def _machines(stack: ExitStack, network: Network, folder: Path, token: str) -> list[Machine]:
    """The laptop, the head and two workers, each with credentials for the store; the laptop has key and token."""
    machines = [Machine(name, number, folder) for number, name in enumerate(("laptop", "head", "one", "two"), start=1)]
    names = {machine.name: machine.address for machine in machines}
    home = machines[0].home
    for part in (".ssh", ".ray"):
        (home / part).mkdir(mode=0o700)
    make_key(home / ".ssh/id_ed25519")
    public = (home / ".ssh/id_ed25519.pub").read_text()
    (home / ".ray/auth_token").write_text(token)
    (home / ".ray/auth_token").chmod(0o600)
    for machine in machines:
        (machine.home / ".aws").mkdir(parents=True)
        for name, text in FILES.items():
            (machine.home / name).write_text(text)
        machine.start(network, names, public if machine is not machines[0] else "")
        stack.callback(machine.stop)
    return machines


def _up(rig: Rig) -> str:
    addresses = ",".join(worker.address for worker in rig.workers)
    rig.at_home("python", "-m", "pipeline", "cluster", "render", "--provider", "local", "--head", rig.head.address,
                "--workers", addresses, "--ssh-user", "root", "--venv", str(ENVIRONMENT), "--worker-cpus", "1",
                "--object-store-mib", "100", "--out", CLUSTER_FILE)  # fmt: skip
    printed = rig.at_home("ray", "up", "--yes", "--no-config-cache", CLUSTER_FILE, seconds=300)
    wait_for(lambda: len(rig.nodes()) == 1 + len(rig.workers), "both workers", lambda: _logs(rig.head), 240, 2)
    return printed


def _tunnel(rig: Rig) -> "subprocess.Popen[bytes]":
    """The head's dashboard at port 8265 of the laptop, which nobody reaches otherwise, until the laptop is off."""
    command = rig.laptop.command("ray", "dashboard", CLUSTER_FILE, at="project", env=USER)
    with (rig.laptop.folder / "tunnel").open("w") as log:
        tunnel = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wait_for(lambda: 8265 in listening(rig.laptop.pid), "the tunnel")
    return tunnel


def _logs(machine: Machine) -> str:
    return machine.run("bash", "-c", "tail -n 40 /tmp/ray/session_latest/logs/monitor.*", code=None)
