"""Progress for people: what runs write to their folders, shown here while they are trained somewhere else."""

import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.progress import copied, say
from pipeline.train.folders import DiskFolder, Folder, Place, open_folder
from pipeline.train.tracking import CURVES, LOG, Row, Tail
from vae_core.metrics.primary import primary

SAID = "said.txt"  # in a run's folder: what its ranks tell the user; at an address each rank has an object of its own
PAUSE_S, REMOTE_PAUSE_S = 0.5, 4.0
LINE_S = 30.0  # a sweep's line without a terminal comes at most so often


@contextmanager
def follow(place: Place, *, what: str, total_steps: int) -> Iterator[None]:
    """Show a run's progress and what its ranks say while the block runs, wherever the run itself is."""
    folder = open_folder(place)
    shown = _Run(folder, what, total_steps)
    with shown.bar, _repeated(shown.show, what, _pause_s(folder)):
        yield


@contextmanager
def follow_sweep(
    places: Sequence[Place], *, what: str, epochs: Sequence[int], figure: str | None = None, largest: bool = False
) -> Iterator[None]:
    """Show how many epochs the runs in `places` have done together, until each has done its own of `epochs`.

    Args:
        figure: the validation figure by which trials are compared; the family's primary one where it is None.
        largest: whether more of it is better.
    """
    folders = [open_folder(place) for place in places]
    shown = _Sweep(folders, what, epochs, figure, largest)
    with shown.bar, _repeated(shown.show, what, max(map(_pause_s, folders), default=PAUSE_S)):
        yield
    say(shown.line())


@contextmanager
def speaking(place: Place, rank: int) -> Iterator[None]:
    """Let what this process, a rank of a run, says meanwhile reach whoever follows the run's folder."""
    folder = open_folder(place)
    if isinstance(folder, DiskFolder):
        with copied(folder.path / SAID):
            yield
        return
    name = f"said-{rank}-{secrets.token_hex(4)}.txt"  # of its own, so that it has one writer
    with tempfile.TemporaryDirectory() as here:
        local = Path(here) / SAID
        put = [b""]

        def relay() -> None:
            said = local.read_bytes() if local.exists() else b""
            if said != put[-1]:
                folder.write(name, said)
                put[:] = [said]

        with copied(local), _repeated(relay, name, REMOTE_PAUSE_S):
            yield


@contextmanager
def _repeated(do: Callable[[], None], what: str, pause_s: float) -> Iterator[None]:
    """Call `do` every `pause_s` seconds in a thread while the block runs, and once more when it ends.

    A store that fails ends that with a line: whatever trains there will find the same, and that decides.
    """
    done, given_up = threading.Event(), threading.Event()

    def once() -> None:
        try:
            do()
        except UserError as error:
            given_up.set()
            say(f"{what}: progress is shown no longer: {error}")

    def again() -> None:
        while not given_up.is_set() and not done.wait(pause_s):
            once()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if not given_up.is_set():
            once()


def _pause_s(folder: Folder) -> float:
    return PAUSE_S if folder.appends else REMOTE_PAUSE_S


class _Said:
    """What ranks say from now on."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        self._folders = folders
        self._tails: dict[tuple[int, str], Tail] = {}
        self._new()

    def pass_on(self) -> None:
        """Say the lines that came since the last call, each once though several ranks say it."""
        for line in dict.fromkeys(self._new()):
            say(line)

    def _new(self) -> list[str]:
        lines: list[bytes] = []
        for number, folder in enumerate(self._folders):
            for name in folder.names("said"):
                lines += self._tails.setdefault((number, name), Tail(folder, name)).lines()
        return [line.decode(errors="replace").rstrip("\n") for line in lines]


class _Run:
    """What is shown of one run."""

    def __init__(self, folder: Folder, what: str, total_steps: int) -> None:
        self._what, self._tail, self._said = what, Tail(folder, LOG), _Said([folder])
        self._on_terminal = sys.stderr.isatty()
        self._epoch = max((row["epoch"] for row in self._tail.rows() if row["split"] == "val"), default=-1)
        self.bar = tqdm(total=total_steps, desc=what, unit="step", disable=not self._on_terminal, leave=False)
        if self._epoch >= 0:
            say(f"{what}: continues after epoch {self._epoch + 1}")

    def show(self) -> None:
        self._said.pass_on()
        for row in self._tail.rows():
            self._show(row)

    def _show(self, row: Row) -> None:
        self.bar.n = row["step"]
        if primary(row) in row:  # not where every step of an epoch was skipped
            self.bar.set_postfix({"epoch": row["epoch"] + 1, primary(row): f"{row[primary(row)]:.2f}"})
        if row["split"] == "val" and row["epoch"] > self._epoch:  # not again after going back to a checkpoint
            self._epoch = row["epoch"]
            if not self._on_terminal:
                say(f"{self._what}: epoch {row['epoch'] + 1}, validation {_words(row)}")


class _Sweep:
    """What is shown of runs that are compared."""

    def __init__(
        self, folders: Sequence[Folder], what: str, epochs: Sequence[int], figure: str | None, largest: bool
    ) -> None:
        self._what, self._epochs, self._figure, self._largest = what, epochs, figure, largest
        self._tails, self._said = [Tail(folder, LOG) for folder in folders], _Said(folders)
        self._last: list[Row] = [{} for _ in folders]
        self._on_terminal = sys.stderr.isatty()
        self._told, self._told_at = 0, time.monotonic()
        self.bar = tqdm(total=sum(epochs), desc=what, unit="epoch", disable=not self._on_terminal, leave=False)

    @property
    def _done(self) -> int:
        """How many trials have done all their epochs."""
        return sum(done >= epochs for done, epochs in zip(self._epochs_done(), self._epochs, strict=True))

    def _epochs_done(self) -> list[int]:
        return [row.get("epoch", -1) + 1 for row in self._last]

    def show(self) -> None:
        self._said.pass_on()
        for number, tail in enumerate(self._tails):
            ends = [row for row in tail.rows() if row["split"] == "val"]
            self._last[number] = ends[-1] if ends else self._last[number]
        self.bar.n = sum(map(min, self._epochs_done(), self._epochs))
        self.bar.set_postfix(done=self._done, best=self._best())
        if (
            self._told < self._done < len(self._last)
            and not self._on_terminal
            and time.monotonic() - self._told_at >= LINE_S
        ):
            self._told, self._told_at = self._done, time.monotonic()
            say(self.line())

    def line(self) -> str:
        return f"{self._what}: {self._done} of {len(self._last)} trials done, best validation {self._best()}"

    def _best(self) -> str:
        name = self._figure or next((primary(row) for row in self._last if row), CURVES[0])
        values = [row[name] for row in self._last if name in row]
        return f"{_short(name)} {(max if self._largest else min)(values):.2f}{_unit(name)}" if values else "none yet"


def _words(row: Row) -> str:
    return ", ".join(f"{_short(name)} {row[name]:.2f}" for name in CURVES if name in row) + " nats"


def _short(name: str) -> str:
    return name.removesuffix("_nats")


def _unit(name: str) -> str:
    return " nats" if name.endswith("_nats") else ""
