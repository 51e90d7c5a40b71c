"""Trains on two nodes of one core each: one is reclaimed, in another run one is lost, in a third the controller.

python tests/pipeline/two_nodes.py SHARDS FOLDER
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipeline import runtime
from pipeline.config import ComputeConfig, TrainConfig
from pipeline.progress import say
from pipeline.train.checkpoints import step_of
from pipeline.train.run import TrainRun
from pipeline.train.worker import fit
from vae_core.config import MLPConfig, VAEConfig

STEPS = 10  # an epoch
DEADLINE_S = 6
TICK_S = 25  # Ray Train counts the nodes that it may use every 20 s


def main(shards: Path, folder: Path) -> None:
    os.environ.update(
        runtime._ENVIRONMENT
        | {
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "6",
        }
    )
    import ray
    from ray.cluster_utils import Cluster

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": port})
    other = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="WARNING", log_to_driver=False)
    steps = set[int]()
    with once(folder / "drained", lambda: drain(cluster.address, other.node_id), steps):
        train(shards, folder / "drained", cluster.address, epochs=200, max_failures=0)
    cluster.remove_node(other)
    another = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    time.sleep(TICK_S)
    say("--- the other node is lost")
    with once(folder / "lost", lambda: cluster.remove_node(another, allow_graceful=False), set()):
        train(shards, folder / "lost", cluster.address, epochs=150, max_failures=1)
    say("--- the controller is killed")
    with once(folder / "killed", kill_controller, set()):
        train(shards, folder / "killed", cluster.address, epochs=150, max_failures=1)
    (folder / "seen.json").write_text(json.dumps({"between epochs": sorted(step for step in steps if step % STEPS)}))
    ray.shutdown()
    cluster.shutdown()


def train(shards: Path, folder: Path, address: str, *, epochs: int, max_failures: int) -> None:
    config = TrainConfig(
        seed=0, epochs=epochs, global_batch_size=128, learning_rate=0.001, max_grad_norm=1000.0, window_shards=2
    )
    compute = ComputeConfig(
        address=address, workers=(1, 2), storage=str(folder), downloads=str(folder), checkpoint_every_steps=10_000,
        max_failures=max_failures,
    )  # fmt: skip
    model = VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(32,)))
    run = TrainRun.of(model, config, shards)
    fit(run, folder, compute, what=f"train {folder.name}", total_steps=STEPS * epochs)


def drain(address: str, node: str) -> None:
    """Say that a node will be taken away, as a cloud does."""
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed",
         "--deadline-remaining-seconds", str(DEADLINE_S)],
        check=True, capture_output=True,
    )  # fmt: skip


def kill_controller() -> None:
    (controller,) = [child for child in psutil.Process().children(recursive=True) if "TrainController" in child.name()]
    controller.kill()


@contextmanager
def once(folder: Path, do: Callable[[], Any], steps: set[int]) -> Iterator[None]:
    """Call `do` when the run has done three epochs; note the steps of all checkpoints from then on."""
    done = threading.Event()

    def look() -> None:
        told = False
        while not done.wait(0.02):
            found = {step_of(path.name) for path in folder.glob("checkpoints/*.safetensors")}
            if not told and max(found, default=0) >= 3 * STEPS:
                told = True
                do()
            if told:
                steps.update(found)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
