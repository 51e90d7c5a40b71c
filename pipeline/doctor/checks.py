"""Which checks there are, in the order in which they are told."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config import Params
from pipeline.doctor import accelerator, cluster, machine, places, project, token
from pipeline.doctor.finding import Check, Finding, ok, run_all

OVERLOADED = "see whether this machine is overloaded"


def diagnose(
    root: Path, params: Params, address: str | None, *, start_ray: bool, plain_http: bool = False
) -> list[Finding]:
    """Look at everything.

    Args:
        address: of a Ray cluster, whose every node is asked too.
        start_ray: without an address, start Ray on this machine.
        plain_http: the token may travel in clear text over a network.
    """
    return run_all(checks(root, params, address, start_ray=start_ray, plain_http=plain_http))


def checks(
    root: Path, params: Params, address: str | None, *, start_ray: bool, plain_http: bool = False
) -> Sequence[Check]:
    compute = params.compute
    network = "see the network, the address and the credentials"
    found = [
        Check("Python", machine.python),
        Check("packages", lambda: machine.packages(machine.wanted_packages(root))),
        Check("params.yaml", lambda: _params(params)),
        Check("Git", lambda: project.repository(root)),
        Check("Git identity", lambda: project.identity(root)),
        Check("Git origin", lambda: project.origin(root), remedy=network),
        Check("DVC", lambda: project.dvc_project(root), limit_s=20),
        Check("DVC locks", lambda: project.dvc_locks(root)),
        Check("DVC remote", lambda: places.remote("DVC remote", places.remote_settings(root)), 20, network),
        Check("compute.storage", lambda: places.storage("compute.storage", compute.storage), 20, network),
        Check("compute.shards", lambda: _shards(compute.shards), 20, network),
        Check("token", lambda: token.look(address is not None)),
        Check("cluster.yaml", lambda: project.cluster_file(root)),
        Check("memory", machine.memory),
        Check("/dev/shm", machine.shared_memory),
        Check("disks", lambda: _disks(root, compute.cache)),
        Check("host name", accelerator.host_name, remedy=f"add it to /etc/hosts, or {accelerator.IFNAME}"),
        Check("torch", lambda: accelerator.look(root), accelerator.LIMIT_S + 5, OVERLOADED),
    ]
    where = address or (cluster.LOCAL if start_ray else None)
    if where is not None:
        found.append(
            Check("Ray", lambda: cluster.look(root, where, plain_http=plain_http), cluster.LIMIT_S + 5, OVERLOADED)
        )
    return found


def _params(params: Params) -> Iterator[Finding]:
    """The command has read it already, and stops at a mistake."""
    yield ok("params.yaml", f"right; families {', '.join(params.families)}")


def _shards(place: str | None) -> Iterator[Finding]:
    if place is not None:
        yield from places.shards("compute.shards", place)


def _disks(root: Path, cache: str) -> Iterator[Finding]:
    """Each disk once."""
    folders = {
        "the project": root,
        "temporary files": Path("/tmp"),
        "the DVC cache": root / ".dvc" / "cache",
        "shards from an address": Path(cache),
    }
    seen: set[int] = set()
    for what, folder in folders.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if (number := os.stat(there).st_dev) not in seen:
            seen.add(number)
            yield from machine.disk(what, folder)
