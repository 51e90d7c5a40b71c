"""Ray's trainer as we use it: on a cluster, and on a Ray that lives and dies with this process.

The latter goes without what only a cluster needs. Each part that is left out is a process: it takes seconds to start,
and cores from the ranks for as long as they train. So the controller runs here instead of as an actor, ranks take
processes that Ray has ready, and nobody asks for more nodes or deals out Ray's own data sets.
"""

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.torch import config as torch_config
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup

UNNEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)


class SharedTrainer(TorchTrainer):
    """On a cluster."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """None: Ctrl-C raises KeyboardInterrupt here as elsewhere, and ends the controller with this process."""


class PrivateTrainer(TorchTrainer):
    """On a Ray of this process, which is the controller itself."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in callbacks if not isinstance(one, UNNEEDED)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        scaling: Any = self.scaling_config
        if not scaling.elasticity_enabled:
            arguments["scaling_policy"] = _Fixed(scaling)
        controller = _Controller(**arguments)
        _off_the_screen(logging.getLogger("ray.train"))
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]
        return controller.get_result()


class Meeting(torch_config.TorchConfig):
    """How ranks that are all on this machine find each other: in a file below `folder`.

    By default torch has them meet at a port of the first rank, which it opens to the whole network.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def backend_cls(self) -> Any:
        return _InFile


class _InFile(torch_config._TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        ranks, place = len(worker_group), backend_config.folder / f"ranks-{secrets.token_hex(8)}"
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        how = {"backend": "nccl" if on_gpus else "gloo", "init_method": f"file://{place}", "world_size": ranks}
        worker_group.execute(torch_config._set_torch_distributed_env_vars)
        set_up = torch_config._setup_torch_process_group
        ray.get([worker_group.execute_single_async(i, set_up, world_rank=i, **how) for i in range(ranks)])


def _off_the_screen(logger: logging.Logger) -> None:
    """What Ray's controller notes goes to its file alone: we tell of it in our words."""
    for handler in list(logger.handlers):
        if handler.get_name() == "console":
            logger.removeHandler(handler)


class _Fixed(FixedScalingPolicy):
    """Asks no autoscaler for nodes: there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Group(WorkerGroup):
    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        """No environment of their own, which would need new processes: Ray's processes have that of this one."""
        return custom_runtime_env

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        """As Ray does it, but for the controller's handle: it is no actor, and none of our ranks calls it."""
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[number] for name, values in train_context_args.items()},
                )
                for number, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    worker_group_cls = _Group
