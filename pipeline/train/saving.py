"""Checkpoints written while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from pipeline.train.checkpoints import Snapshot


class Saver:
    """Writes snapshots in a thread, one after the other; leaving the block waits for the last.

    An error of the thread is raised by the next call, or on leaving the block.
    """

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write, self._last = write, Future[None]()
        self._last.set_result(None)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")

    def save(self, snapshot: Snapshot) -> None:
        """Have `snapshot` written, once the one before is on disk: so at most one is in memory besides the model."""
        self.wait()
        self._last = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Until all that was to be saved is on disk."""
        self._last.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()
