"""Which finished runs stay in the store: the newest, and the trials of the sweeps that stay."""

from contextlib import suppress

from pipeline.errors import Busy
from pipeline.train.folders import Folder, Place, open_folder
from pipeline.train.lock import remove_run
from pipeline.train.storage import FINISHED, RUN, read_json


def forget_oldest(place: Place, keep: int) -> list[str]:
    """Remove all but the `keep` finished runs of the store `place` that ended last. Returns the names of those removed.

    A sweep's trials, as its `run.json` names them, stay as long as it does and are not counted. One that another
    process holds stays too.

    Raises:
        StorageFailed: the disk or the store.
    """
    store = open_folder(place)
    ended = _ended(store)
    if len(ended) <= keep:
        return []
    trials = _trials(store)
    named = {name for names in trials.values() for name in names}
    counted = sorted((name for name in ended if name not in named), key=lambda name: (ended[name], name))
    going = set(counted[: max(0, len(counted) - keep)])
    stay = {name for sweep, names in trials.items() if sweep not in going for name in names}
    there = {name.partition("/")[0] for name in store.names()}
    going |= named & there - stay  # trials that were stopped or failed have no end of their own
    removed = []
    for name in sorted(going):
        with suppress(Busy):
            remove_run(store.sub(name))
            removed.append(name)
    return removed


def _ended(store: Folder) -> dict[str, float]:
    """When each finished run ended, in seconds of the epoch."""
    parts = ((name.split("/"), file) for name, file in store.details().items())
    return {path[0]: file.modified for path, file in parts if len(path) == 2 and path[1] == FINISHED}


def _trials(store: Folder) -> dict[str, list[str]]:
    """The folders that each sweep names."""
    runs = [name.removesuffix(f"/{RUN}") for name in store.names() if name.endswith(f"/{RUN}")]
    told = {name: (read_json(store.sub(name), RUN) or {}).get("trials") for name in runs}
    return {name: trials for name, trials in told.items() if trials}
