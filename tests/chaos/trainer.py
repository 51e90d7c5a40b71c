"""One training with some number of workers, on a Ray of its own with four cores, noting which rows each step saw.

python tests/chaos/trainer.py SHARDS FOLDER WORKERS EPOCHS
"""

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path

from pipeline import runtime
from pipeline.config import ComputeConfig, load_params
from pipeline.data.loader import Loader
from pipeline.train.publish import publish_model
from pipeline.train.run import TrainRun
from pipeline.train.worker import fit
from vae_core.batch import Batch
from vae_core.config import MLPConfig, VAEConfig

SMALL = VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(32,)))
MANY = 10_000  # rows for training; MNIST has more, the digits have less
CORES = 4  # that Ray is told of: a worker needs one
SEEN = "CHAOS_SEEN"  # environment: the folder of these notes


def note() -> None:
    """In each of Ray's workers: write which rows this rank is given at each step, one JSON line a batch."""
    given = Loader.epoch

    @wraps(given)
    def noted(self: Loader, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        with (Path(os.environ[SEEN]) / f"{os.getpid()}.jsonl").open("a", buffering=1) as file:
            for step, batch in enumerate(given(self, epoch, first_step), first_step):
                if self.split.name == "train":
                    places = batch.position[batch.weight > 0].cpu().numpy()
                    rows = dict(zip(places.tolist(), self.ids(epoch, step, places), strict=True))
                    file.write(json.dumps({"epoch": epoch, "step": step, "rows": rows}) + "\n")
                yield batch

    Loader.epoch = noted  # type: ignore[method-assign]


def run_of(shards: Path, epochs: int) -> TrainRun:
    """The family `vae` of params.yaml on MNIST; a small one on the digits, whose batches are smaller too."""
    params = load_params()
    train = replace(params.train, epochs=epochs)
    run = TrainRun.of(params.models["vae"], train, shards)
    if run.reading.manifest().counts["train"] > MANY:
        return run
    return replace(run, model=SMALL, train=replace(train, global_batch_size=6))


def main(shards: Path, folder: Path, workers: int, epochs: int) -> None:
    os.environ.setdefault("RAY_AUTH_TOKEN", "of these tests alone, and of no use elsewhere")
    for name, value in runtime._ENVIRONMENT.items():  # before Ray is imported
        os.environ.setdefault(name, value)
    seen, runs = folder / "seen", folder / "run"
    seen.mkdir(parents=True, exist_ok=True)
    run = run_of(shards, epochs)
    steps = -(-run.reading.manifest().counts["train"] // run.train.global_batch_size) * epochs
    with ray_of_four(seen):
        fit(run, runs, this_machine(workers, folder), what=f"{workers} workers", total_steps=steps)
        publish_model(run, runs, folder / "model")


@contextmanager
def ray_of_four(seen: Path) -> Iterator[None]:
    """Ray with four cores, whatever the machine has; its workers note what they see in `seen`."""
    import ray

    paths = os.pathsep.join([os.getcwd(), str(Path(__file__).parent)])
    ray.init(
        address="local", num_cpus=CORES, object_store_memory=runtime.OBJECT_STORE_BYTES, logging_level="WARNING",
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": note, "env_vars": {"PYTHONPATH": paths, SEEN: str(seen)}},
    )  # fmt: skip
    yield
    ray.shutdown()


def this_machine(workers: int, folder: Path) -> ComputeConfig:
    return ComputeConfig(
        address=None, workers=workers, threads=1, storage=str(folder), downloads=str(folder), checkpoint_every_steps=25,
        max_failures=0,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
