"""Shards from the driver's node, for nodes of a Ray cluster that share no disk with it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.data.index import INDEX, MANIFEST, read_manifest
from pipeline.errors import UserError

PIECE_BYTES = 8 * 1024**2  # a fraction of Ray's object store, through which the pieces travel
NAMESPACE = "vae-pipeline-shards"


class ShardServer:
    """Gives out the files that a manifest names, and nothing else of the node. Runs as a Ray actor."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        named = {entry.name for entry in read_manifest(self._folder).shards}
        self._names = frozenset({MANIFEST, INDEX} | named)

    def location(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        return sorted(self._names)

    def read(self, name: str, offset: int, length: int) -> bytes | None:
        """At most `length` bytes from `offset`; None: no such file."""
        if name not in self._names or not (self._folder / name).is_file():
            return None
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(length)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve `folder` from this node for the length of the block, under the name that is yielded.

    Raises:
        UserError: the folder holds no manifest, or not the one that was written.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    read_manifest(folder)
    name = f"shards-{secrets.token_hex(8)}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "name": name,
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "max_concurrency": 4,
        "max_restarts": 3,
        "max_task_retries": 3,
    }
    remote: Any = ray.remote(ShardServer)
    actor = remote.options(scheduling_strategy=here, **options).remote(str(folder.resolve()))
    try:
        ray.get(actor.location.remote())
        yield name
    finally:
        ray.kill(actor)


class PeerFolder:
    """The folder that the actor `name` serves. Raises UserError wherever the actor is gone."""

    def __init__(self, name: str) -> None:
        import ray

        try:
            self._actor = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            raise _gone(name) from None
        self._name = name
        self._location: str = self._ask("location")

    @property
    def location(self) -> str:
        return self._location

    def read(self, name: str) -> bytes:
        return b"".join(self._pieces(name))

    def fetch(self, name: str, to: Path) -> None:
        with to.open("wb") as file:
            file.writelines(self._pieces(name))

    def names(self) -> list[str]:
        return list(self._ask("names"))

    def _pieces(self, name: str) -> Iterator[bytes]:
        offset, piece = 0, None
        while piece is None or len(piece) == PIECE_BYTES:
            piece = self._ask("read", name, offset, PIECE_BYTES)
            if piece is None:
                raise UserError(f"{self._location}/{name}: no such file on the driver's node; write it again there")
            offset += len(piece)
            yield piece

    def _ask(self, method: str, *arguments: object) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except ray.exceptions.RayActorError:
            raise _gone(self._name) from None


def _gone(name: str) -> UserError:
    return UserError(
        f"{name}: the process that serves the driver's shards is gone; start the run again, or set compute.shards to a "
        "place that every node reads"
    )
