"""What a node of a Ray cluster says of itself; run there as a task."""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.doctor import machine, places
from pipeline.doctor.finding import Finding, broken, failed, ok, warning
from pipeline.errors import UserError
from pipeline.train.folders import open_folder


@dataclass(frozen=True)
class Asked:
    """What every node is asked.

    Attributes:
        storage: compute.storage, absolute.
        seen: a file there, which the driver wrote; None where it could not.
        remote: settings of the DVC remote, without secrets.
        shards: compute.shards, where it is an address.
        packages: name -> version of constraints.txt.
        python: the driver's version.
        cache: compute.cache, where shards from an address are kept.
    """

    storage: str
    seen: str | None
    remote: Mapping[str, Any] | None
    shards: str | None
    packages: Mapping[str, str | None]
    python: str
    cache: str


def examine(asked: Asked, gpus: int, head: bool) -> list[Finding]:
    """All that can be seen from this node; `gpus` is how many Ray counts here."""
    return list(_all(asked, gpus, head))


def _all(asked: Asked, gpus: int, head: bool) -> Iterator[Finding]:
    version = platform.python_version()
    if version == asked.python:
        yield ok("Python", version)
    else:
        yield broken("Python", f"{version} here, {asked.python} on the driver", "the same image on every node")
    yield from machine.packages(asked.packages)
    yield from machine.shared_memory()
    yield from machine.disk("shards from an address", Path(asked.cache))
    yield from machine.disk("temporary files", Path("/tmp"))
    yield from _storage(asked)
    if asked.shards is not None:
        yield from places.shards("compute.shards", asked.shards)
    if asked.remote is not None:
        yield from _remote(asked.remote, head)
    yield from _gpus(gpus)


def _storage(asked: Asked) -> Iterator[Finding]:
    what = "compute.storage"
    try:
        if asked.seen is not None:
            open_folder(asked.storage, places.PLACE_S).read(asked.seen)
    except FileNotFoundError:
        yield broken(
            what,
            f"{asked.storage} is another folder here than on the driver",
            "set compute.storage to an address such as s3://BUCKET/vae-pipeline/runs, or to a folder all nodes mount",
        )
    except UserError as error:
        yield failed(what, error)
    else:
        yield from places.storage(what, asked.storage)


def _remote(settings: Mapping[str, Any], head: bool) -> Iterator[Finding]:
    """Only where jobs run, on the head, is it needed."""
    for found in places.remote("DVC remote", settings):
        if found.level == "ok" or head:
            yield found
        else:
            yield warning(found.what, found.told, "only a job that runs on this node would need it")


def _gpus(gpus: int) -> Iterator[Finding]:
    if not gpus:
        return
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "0"):
        del os.environ["CUDA_VISIBLE_DEVICES"]  # what Ray hides from a task that asks for none
    import torch

    seen = torch.cuda.device_count()
    if seen >= gpus:
        yield ok("GPU", f"{seen}, {torch.cuda.get_device_name(0)}")
    else:
        yield broken(
            "GPU",
            f"Ray counts {gpus} here, torch sees {seen}",
            "look at `nvidia-smi` there: a driver older than torch's CUDA, or an image without it",
        )
