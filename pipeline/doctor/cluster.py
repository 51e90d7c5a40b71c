"""Ray: whether it starts here, or answers at an address; and what every node of that cluster says.

python -m pipeline.doctor.cluster ADDRESS|local    a finding a line, as JSON

A process of its own, because Ray may wait for minutes, and ends the process that it runs in when it fails.
"""

import json
import platform
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline import token
from pipeline.addresses import knock
from pipeline.doctor import machine, node, places
from pipeline.doctor.finding import Finding, broken, failed, ok
from pipeline.ending import end
from pipeline.errors import UserError

KNOCK_S, CONNECT_S, NODES_S = 5.0, 12.0, 60.0
LIMIT_S = CONNECT_S + NODES_S + 20
LOCAL = "local"
WHAT = "Ray"
HEAD = "node:__internal_head__"
REFUSED = "InvalidAuthToken"  # Ray logs it every second, while it goes on trying
_START = "start it (`ray up cluster.yaml`), correct --address or compute.address, or set it to null to run here"


def look(root: Path, address: str, *, plain_http: bool = False) -> Iterator[Finding]:
    """Findings of a process of its own."""
    if address.startswith(("http://", "https://")):
        yield _job_server(address, plain_http=plain_http)
        return
    try:
        knock(address, KNOCK_S)
    except OSError as error:
        yield broken(WHAT, f"nothing answers at {address} ({error.strerror or error})", _START)
        return
    command = [sys.executable, "-m", "pipeline.doctor.cluster", address]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            out, said = child.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            out, said = child.communicate()
            said = f"no answer in {LIMIT_S:g} s"
    found = [Finding(**json.loads(line)) for line in out.splitlines() if line.startswith("{")]
    if REFUSED in said and not any(each.level == "ok" for each in found):
        yield broken(WHAT, f"{address} refuses this token", token.COPY)
        return
    yield from found
    if not found or child.returncode:
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        yield broken(WHAT, f"ended with {child.returncode} ({reason})", "look into /tmp/ray/session_latest/logs")


def _job_server(address: str, *, plain_http: bool) -> Finding:
    """A dashboard's address, which jobs are submitted to; it lets no driver in, so the nodes stay unseen."""
    from pipeline.jobs.access import Access
    from pipeline.jobs.cluster import ray_version

    try:
        version = ray_version(Access.of(address, plain_http=plain_http))
    except UserError as error:
        return failed(WHAT, error)
    import ray

    if version != ray.__version__:
        return broken(WHAT, f"{version} at {address}, {ray.__version__} here", "install the cluster's version")
    return ok(
        WHAT,
        f"{version} at {address}; for its nodes: `python -m pipeline submit --wait -- python -m pipeline doctor`",
    )


def main(address: str) -> None:
    from pipeline.config import load_params
    from pipeline.runtime import cluster

    params = load_params()
    compute = replace(params.compute, address=None if address == LOCAL else address)
    late = threading.Timer(CONNECT_S if address != LOCAL else NODES_S, _give_up, [address])
    late.daemon = True
    late.start()
    start = time.monotonic()
    try:
        with cluster(compute):
            late.cancel()
            _emit(_connected(address, time.monotonic() - start))
            if address != LOCAL:
                for finding in _nodes(Path(), compute):
                    _emit(finding)
    except UserError as error:
        late.cancel()
        _emit(failed(WHAT, error))


def _emit(finding: Finding) -> None:
    print(json.dumps(asdict(finding)), flush=True)


def _give_up(address: str) -> None:
    where = "does not start here" if address == LOCAL else f"something listens at {address}, but does not answer as Ray"
    _emit(broken(WHAT, where, _START if address != LOCAL else "see /tmp/ray/session_latest/logs"))
    end(0)


def _connected(address: str, seconds: float) -> Finding:
    import ray

    told = f"{ray.__version__}, Python {platform.python_version()}"
    if address == LOCAL:
        return ok(WHAT, f"{told}: starts here in {seconds:.1f} s")
    alive = sum(each["Alive"] for each in ray.nodes())
    return ok(WHAT, f"{told}: {alive} node{'s' * (alive != 1)} at {address}, token accepted")


def _nodes(root: Path, compute: Any) -> Iterator[Finding]:
    """What each node says of itself."""
    from pipeline.train.folders import store_of

    store = store_of(compute)
    seen: str | None = f"doctor-{secrets.token_hex(8)}"
    try:
        store.write(str(seen), b"")
    except (UserError, FileNotFoundError):  # another check tells of it, and every node will
        seen = None
    try:
        settings = places.remote_settings(root)
        asked = node.Asked(
            storage=compute.storage if "://" in compute.storage else store.location,
            seen=seen,
            remote=None if settings is None else places.public(settings),
            shards=compute.shards,
            packages=machine.wanted_packages(root),
            python=platform.python_version(),
            cache=compute.cache,
        )
        yield from _answers(asked)
    finally:
        if seen is not None:
            store.remove(seen)


def _answers(asked: node.Asked) -> Iterator[Finding]:
    import ray

    until = time.monotonic() + NODES_S
    alive = [each for each in ray.nodes() if each["Alive"]]
    asking = [
        (each, _on(each, node.examine, asked, int(each["Resources"].get("GPU", 0)), HEAD in each["Resources"]))
        for each in alive
    ]
    for each, answer in asking:
        name = f"node {each['NodeManagerAddress']}" + (" (head)" if HEAD in each["Resources"] else "")
        try:
            found = ray.get(answer, timeout=max(1.0, until - time.monotonic()))
            skew = _skew(each, max(1.0, until - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            yield broken(name, f"no answer in {NODES_S:g} s", "see `ray status`, and whether the node is overloaded")
            continue
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).strip().splitlines() if line]
            yield broken(
                name,
                f"cannot look ({lines[-1].strip()})",
                "see `ray status`; every node needs the packages of constraints.txt",
            )
            continue
        yield from _folded(name, [*found, places.clock("clock", "the node", skew)])


def _on(each: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """A task on that node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=where).remote(*arguments)


def _skew(each: Mapping[str, Any], timeout_s: float) -> float:
    """Seconds that its clock is off for certain: what the question took on its way counts for nothing."""
    import ray

    before = time.time()
    there = ray.get(_on(each, _clock), timeout=timeout_s)
    return float(max(before - there, there - time.time(), 0.0))


def _clock() -> float:
    return time.time()


def _folded(name: str, found: list[Finding]) -> Iterator[Finding]:
    """What is well in one line, the rest each in its own."""
    well = [f"{each.what} {each.told}" for each in found if each.level == "ok"]
    if well:
        yield ok(name, ", ".join(well))
    yield from (replace(each, what=f"{name}: {each.what}") for each in found if each.level != "ok")


if __name__ == "__main__":
    main(sys.argv[1])
