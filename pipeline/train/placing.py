"""How many workers, where, and with how many threads; and whether all of them can write to the run's folder."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ClusterFailed, UserError
from pipeline.progress import say
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import DiskFolder, Folder

RESIZE_S = 60.0  # between looks for nodes that came; a change of size costs a start of all workers
GROWTH_S = 900.0  # for a cloud to give a node, and the node to set itself up
SEEN_S = 60.0  # for a node to look for a file


@dataclass(frozen=True)
class Placing:
    """The workers of a run.

    Attributes:
        workers: how many, or the least and the most of them.
        cores: that each worker has to itself.
        threads: of torch, in each worker.
    """

    workers: int | tuple[int, int]
    gpu: bool
    cores: int
    threads: int

    @property
    def scaling(self) -> dict[str, Any]:
        """Arguments of Ray Train's ScalingConfig."""
        elastic = {"elastic_resize_monitor_interval_s": RESIZE_S} if isinstance(self.workers, tuple) else {}
        resources = {"CPU": self.cores, **({"GPU": 1} if self.gpu else {})}
        return {"num_workers": self.workers, "use_gpu": self.gpu, "resources_per_worker": resources, **elastic}

    def __str__(self) -> str:
        if isinstance(self.workers, tuple):
            many = f"{self.workers[0]} to {self.workers[1]} workers"
        else:
            many = f"{self.workers} worker{'s' * (self.workers > 1)}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        each = " each" if self.workers != 1 else ""
        return f"{many} on {'a GPU' if self.gpu else 'the CPU'} with {threads}{each}"


def place(compute: ComputeConfig) -> Placing:
    """By default one worker a GPU, or one worker with every core of a node where there is no GPU.

    Raises:
        UserError: Ray has no room for as many workers as compute.workers asks for.
    """
    grow(compute, compute.fewest_workers)
    return fit_into(_nodes(), compute)


def grow(compute: ComputeConfig, fewest: int) -> None:
    """Wait until a cluster that gets its nodes on demand has as many GPUs, or cores where it has no GPU, or time is up.

    The demand is this driver's, and ends with it.
    """
    if compute.address is None:
        return
    if not _units(_nodes())[1]:
        _demand([{"CPU": 1}])  # whether nodes have GPUs is seen when there is one
    kind, there = _units(_nodes())
    if there < fewest:
        _demand([{kind: 1}] * fewest)


def _demand(bundles: list[dict[str, float]]) -> None:
    from ray.util import placement_group, remove_placement_group

    say(f"waiting for the cluster to get nodes: room for {len(bundles)} x {bundles[0]} (up to {GROWTH_S / 60:g} min)")
    group = placement_group(bundles)
    try:
        group.wait(GROWTH_S)
    finally:
        remove_placement_group(group)


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _units(nodes: Sequence[dict[str, float]]) -> tuple[str, int]:
    """GPU or CPU, and how many of them there are."""
    kind = "GPU" if any(node.get("GPU", 0) >= 1 for node in nodes) else "CPU"
    return kind, sum(int(node.get(kind, 0)) for node in nodes)


def fit_into(nodes: Sequence[dict[str, float]], compute: ComputeConfig) -> Placing:
    """Likewise, into nodes with such resources: `CPU` and `GPU`."""
    kind, there = _units(nodes)
    gpus = there if kind == "GPU" else 0
    asked = compute.workers if compute.workers != "auto" else max(1, gpus)
    fewest = compute.fewest_workers
    if fewest > there:
        units = "GPUs" if gpus else "cores"
        raise UserError(f"params.yaml: compute.workers: {fewest} workers need as many {units}, Ray has {there}")
    most = asked[1] if isinstance(asked, tuple) else asked
    cores = 1 if gpus else _cores(nodes, min(most, there))
    threads = compute.threads if compute.threads != "auto" else _threads(nodes, gpus, cores)
    return Placing((asked[0], asked[1]) if isinstance(asked, tuple) else asked, gpus > 0, cores, threads)


def _cores(nodes: Sequence[dict[str, float]], workers: int) -> int:
    """The most that each of so many workers can have, none of them across two nodes."""
    sizes = [int(node.get("CPU", 0)) for node in nodes]
    return max(cores for cores in range(1, max(sizes) + 1) if sum(size // cores for size in sizes) >= workers)


def _threads(nodes: Sequence[dict[str, float]], gpus: int, cores: int) -> int:
    """As many as a worker's cores; beside GPUs, a fair share of the cores of the node that has fewest a GPU."""
    if not gpus:
        return cores
    shares = [int(node.get("CPU", 1)) // int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    return max(1, min(shares, default=1))


def check_shared(folder: Folder) -> None:
    """See that every node of the cluster that could train finds this node's files in the folder of the run.

    Raises:
        UserError: one does not.
    """
    import ray

    if not isinstance(folder, DiskFolder):
        return
    here = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0) >= 1
    }
    if not others:
        return
    token = f"seen-{secrets.token_hex(8)}"
    folder.write(token, b"")
    try:
        blind = unseen(folder.path / token, others)
    finally:
        folder.remove(token)
    if blind:
        raise UserError(
            f"params.yaml: compute.storage: {', '.join(blind)} cannot see {folder.location}, so training could not "
            "resume there; set compute.storage to an address such as s3://BUCKET/vae-pipeline/runs, or to a folder "
            "that every node mounts, or set compute.workers to what this node has room for"
        )


def unseen(path: Path, nodes: dict[str, str]) -> list[str]:
    """The addresses of those nodes, by their ids, that do not find a file.

    Raises:
        ClusterFailed: a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(Path.exists)
    answers = {
        address: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(path)
        for node, address in nodes.items()
    }
    return sorted(address for address, answer in answers.items() if not _answered(answer, address))


def _answered(answer: Any, address: str) -> bool:
    import ray

    try:
        return bool(ray.get(answer, timeout=SEEN_S))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterFailed(f"node {address} does not answer ({reason}); look at `ray status`") from None
