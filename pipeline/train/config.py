"""The sections `train` and `compute` of params.yaml: what a training run computes, and where and how it runs."""

from dataclasses import dataclass
from typing import Literal

from pipeline.data.config import ReadConfig
from vae_core.config import Scheduled, Strict, check, check_at_least, check_scheduled


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Strict):
    seed: int
    epochs: int
    global_batch_size: int
    learning_rate: Scheduled
    max_grad_norm: float
    window_shards: int
    lanes: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["off", "on", "cuda_graphs"] = "off"
    ema_decay: float = 0.0
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        check(self, "seed", self.seed >= 0, "an integer of at least 0")
        for name in ("epochs", "global_batch_size", "window_shards", "lanes"):
            check(self, name, getattr(self, name) >= 1, "an integer of at least 1")
        check(self, "max_grad_norm", self.max_grad_norm > 0, "a number above 0")
        check_scheduled(self, "learning_rate", above=0)
        check(self, "ema_decay", 0 <= self.ema_decay < 1, "a number from 0 (no average) to below 1")
        check(self, "max_skipped_steps", self.max_skipped_steps >= 0, "an integer of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig(Strict):
    """Where and how it runs. Never changes what is computed, so no stage depends on it.

    Attributes:
        workers: ranks of a training run; [least, most]: as many as there is room for, changing as nodes come and go.
        threads: of torch in each worker; auto: the node's cores, dealt out evenly.
        max_rows: of one forward pass on one worker; more are done in turn, and their gradients added.
        keep_runs: finished runs whose checkpoints stay in `storage`.
        max_failures: restarts of a training run after a failure.
        max_preemptions: likewise after a node was taken back; -1: without a limit.
        trial_cpus, trial_gpus, trial_workers: what one trial of a sweep has.
    """

    address: str | None
    workers: int | tuple[int, ...] | Literal["auto"]
    storage: str
    downloads: str
    checkpoint_every_steps: int
    max_failures: int
    max_preemptions: int = -1
    threads: int | Literal["auto"] = "auto"
    max_rows: int | None = None
    keep_runs: int = 50
    trial_cpus: float = 1.0
    trial_gpus: float | Literal["auto"] = "auto"
    trial_workers: int = 1
    shards: str | None = None
    device_cache: bool | Literal["auto"] = "auto"
    verify: Literal["once", "always", "never"] = "once"
    cache: str = ".cache/shards"
    cache_bytes: int = 50 * 1024**3
    remote_timeout_s: float = 120.0

    @property
    def fewest_workers(self) -> int:
        """With which training starts."""
        if isinstance(self.workers, tuple):
            return self.workers[0]
        return 1 if self.workers == "auto" else self.workers

    @property
    def read(self) -> ReadConfig:
        """How a node reads shards."""
        return ReadConfig(
            verify=self.verify,
            cache=self.cache,
            cache_bytes=self.cache_bytes,
            remote_timeout_s=self.remote_timeout_s,
        )

    def __post_init__(self) -> None:
        _ = self.read  # which checks its own fields
        check(self, "workers", _is_count(self.workers), "auto, an integer of at least 1, or [least, most] of them")
        check(self, "threads", self.threads == "auto" or self.threads >= 1, "auto or an integer of at least 1")
        check(self, "max_rows", self.max_rows is None or self.max_rows >= 1, "null or an integer of at least 1")
        check(self, "trial_cpus", self.trial_cpus > 0, "a number above 0")
        check(self, "trial_gpus", self.trial_gpus == "auto" or self.trial_gpus >= 0, "auto or a number of at least 0")
        check_at_least(self, 0, "max_failures", "keep_runs")
        check_at_least(self, 1, "checkpoint_every_steps", "trial_workers")
        check(self, "max_preemptions", self.max_preemptions >= -1, "-1 (no limit) or a number of at least 0")


def _is_count(workers: int | tuple[int, ...] | str) -> bool:
    if isinstance(workers, tuple):
        return len(workers) == 2 and 1 <= workers[0] <= workers[1]
    return workers == "auto" or (isinstance(workers, int) and workers >= 1)
