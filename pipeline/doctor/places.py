"""Places that must be readable and writable: compute.storage, the DVC remote, the shards; and what their clocks say."""

import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.index import MANIFEST
from pipeline.data.places import open_place
from pipeline.doctor.finding import Finding, broken, failed, ok, warning
from pipeline.errors import UserError
from pipeline.train.folders import open_folder

PLACE_S = 6.0  # of silence, before a place counts as dead
SKEW_S = 5.0
PUBLIC = ("url", "endpointurl", "region", "profile", "use_ssl", "ssl_verify", "version_aware")
_TEXT = b"doctor\n"


def storage(what: str, place: str) -> Iterator[Finding]:
    """Write a file below compute.storage, read it, remove it; compare when the store says that it was written."""
    try:
        folder = open_folder(place, PLACE_S)
        name = f"doctor-{secrets.token_hex(8)}"
        before = time.time()
        folder.write(name, _TEXT)
        try:
            after, back = time.time(), folder.read(name)
            modified = folder.details(name)[name].modified
        finally:
            folder.remove(name)
    except FileNotFoundError as error:  # above it there is something that is no folder for files
        yield broken(what, f"{place} cannot be made ({error.strerror or error})", "correct compute.storage")
        return
    except UserError as error:
        yield failed(what, error)
        return
    if back != _TEXT:
        yield broken(what, f"{folder.location} gives back other bytes than were written", "use another store")
        return
    yield ok(what, f"{folder.location} is readable and writable")
    if modified:
        yield clock(f"clock of {what}", "the store", max(before - modified, modified - after, 0.0))


def clock(what: str, whose: str, skew_s: float) -> Finding:
    """Whether two clocks agree; leases of runs and the order of registry tags go by them."""
    if skew_s > SKEW_S:
        return warning(
            what,
            f"that of {whose} and this machine's differ by {skew_s:.0f} s",
            "let both follow a time server (`timedatectl set-ntp true`)",
        )
    return ok(what, f"within {SKEW_S:g} s of this machine's")


def shards(what: str, place: str) -> Iterator[Finding]:
    """Read the manifest of the shards. Training writes nothing there."""
    try:
        found = open_place(place, PLACE_S).read(MANIFEST)
    except FileNotFoundError:
        yield warning(what, f"{place} holds no {MANIFEST}", "`dvc repro shard` or `dvc pull data/shards`")
    except UserError as error:
        yield failed(what, error)
    else:
        yield ok(what, f"{place} is readable, its manifest has {len(found)} bytes")


def remote_settings(root: Path) -> dict[str, Any] | None:
    """Of the project's default DVC remote; None where there is none."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        return dict(repo.config["remote"][name]) if name else None


def public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are no secret: a node has credentials of its own."""
    return {key: value for key, value in settings.items() if key in PUBLIC}


def remote(what: str, settings: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Write, read and remove a file in the DVC remote, in the way that DVC does."""
    if settings is None:
        yield warning(
            what,
            "none",
            "`dvc remote add -d NAME URL` and commit .dvc/config: jobs and others get data and models from there",
        )
        return
    from dvc.fs import get_cloud_fs

    url = settings["url"]
    try:
        kind, config, path = get_cloud_fs(None, **settings)
        files = kind(**config)
        if files.protocol == "local" and not Path(path).is_dir():
            yield warning(what, f"{url}: no such folder yet", "`dvc push` makes it, if the address is right")
            return
        probe = files.join(path, f".doctor-{secrets.token_hex(8)}")
        files.pipe_file(probe, _TEXT)
        try:
            back = files.cat_file(probe)
        finally:
            files.rm_file(probe)
    except Exception as error:  # each kind of store has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield broken(
            what,
            f"{url} is not readable and writable ({reason})",
            "check `dvc remote list`, the network and your credentials",
        )
        return
    yield (
        ok(what, f"{url} is readable and writable")
        if back == _TEXT
        else broken(what, f"{url} gives back other bytes than were written", "use another store")
    )
