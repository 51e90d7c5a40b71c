"""copy a folder of shards to an address such as s3://bucket/shards, from where training can read it"""

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pipeline import progress
from pipeline.config import Params
from pipeline.data.config import ReadConfig
from pipeline.data.index import INDEX, MANIFEST, Manifest, parse_manifest
from pipeline.data.places import LocalFolder, RemoteFolder
from pipeline.data.store import open_store
from pipeline.errors import UserError

DEFAULT = "data/shards"


def arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "What is there already is not copied again, so a copy that was broken off goes on. Then set compute.shards in "
        "params.yaml to URI. s3:// needs the package s3fs, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE, in the environment; AWS_ENDPOINT_URL names a store that is not Amazon's."
    )
    parser.add_argument("uri", metavar="URI", help="where to, for instance s3://bucket/shards")
    parser.add_argument("--shards", metavar="PATH", default=DEFAULT, help=f"the folder to copy; {DEFAULT} without it")


def main(params: Params, args: Namespace) -> None:
    print(upload(Path(args.shards), args.uri, params.compute.read))


def upload(folder: Path, uri: str, read: ReadConfig) -> str:
    """Copy what is not there yet, the manifest last; one line that tells what was done.

    Raises:
        UserError: the folder is not as it was written, or the place refuses or does not answer.
    """
    if "://" not in uri:
        raise UserError(f"{uri}: not an address; expected one such as s3://bucket/shards")
    store = open_store(folder, read)
    for split in {entry.split for entry in store.manifest.shards}:
        store.check_split(split)
    place = RemoteFolder(uri, read.remote_timeout_s)
    there = place.details()
    # The lengths of a folder with another manifest, or without one, prove nothing: raw shards are often of one length.
    known = _sealed(store.manifest) if _manifest(place, there) == store.manifest else frozenset()
    files = [name for name in LocalFolder(folder).names() if _wanted(name)]
    missing = [name for name in files if not _same(folder / name, there.get(name), name in known)]
    if missing and MANIFEST in there:
        place.remove(MANIFEST)  # until the new one comes, readers find none rather than one of other shards
    for name in progress.track(missing, total=len(missing), what="upload", unit="files"):
        place.store(folder / name, name)
    if missing or MANIFEST not in there or not known:
        place.store(folder / MANIFEST, MANIFEST)
    return f"{place.location}: {len(missing):,} files copied, {len(files) - len(missing):,} were there"


def _wanted(name: str) -> bool:
    return name != MANIFEST and not name.endswith(".tmp")


def _manifest(place: RemoteFolder, there: dict[str, dict[str, Any]]) -> Manifest | None:
    if MANIFEST not in there:
        return None
    try:
        return parse_manifest(place.read(MANIFEST), place.location)
    except UserError:
        return None


def _sealed(manifest: Manifest) -> frozenset[str]:
    """The files whose sha256 the manifest holds."""
    return frozenset({INDEX, *(entry.name for entry in manifest.shards)})


def _same(path: Path, there: dict[str, Any] | None, sealed: bool) -> bool:
    """Whether the object is the file: of its length, and either named by the same manifest or with its MD5 as ETag."""
    if there is None or there["size"] != path.stat().st_size:
        return False
    return sealed or str(there.get("ETag", "")).strip('"') == _md5(path)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
