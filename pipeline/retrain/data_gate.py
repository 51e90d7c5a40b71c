"""The gate before training: new data are ingested and sharded in the clone, and compared with those of HEAD."""

from dataclasses import replace

from pipeline.config import Params
from pipeline.data.index import INDEX, MANIFEST, Manifest, parse_manifest, read_manifest
from pipeline.git import text_at
from pipeline.retrain.champions import opened
from pipeline.retrain.child import ChildFailed
from pipeline.retrain.clone import Clone
from pipeline.retrain.drift import Statistics, compare
from pipeline.retrain.report import Report
from pipeline.retrain.sources import LOCK
from pipeline.stages import SHARDS

MISTAKE = 1  # how a stage ends that says what is wrong with what it was given


def gated(clone: Clone, params: Params, begun: Report) -> Report:
    """`begun` with what is known of the new data, and why they are refused, if they are.

    Raises:
        ChildFailed: ingest or shard failed for another reason than the data.
        UserError: the data of HEAD cannot be had, or a source changed while it was read.
    """
    try:
        clone.dvc("repro", *clone.pulling, "ingest", "shard")
    except ChildFailed as error:
        if error.code == MISTAKE and error.complaints:
            return replace(begun, refused=error.complaints)
        raise
    clone.check_data(begun.sources)
    now = _here(clone)
    before = _of_head(clone)
    if before is None:
        return replace(begun, digests=(None, now.digest))
    drift = tuple(compare(before, now, params.retrain.drift))
    refused = tuple(row.complaint for row in drift if not row.holds)
    return replace(begun, digests=(before.digest, now.digest), drift=drift, refused=refused)


def manifest_of(clone: Clone) -> Manifest:
    return read_manifest(clone.root / SHARDS)


def _here(clone: Clone) -> Statistics:
    return Statistics.of(manifest_of(clone), (clone.root / SHARDS / INDEX).read_bytes())


def _of_head(clone: Clone) -> Statistics | None:
    """Of the shards of the commit that the clone began with; None where its dvc.lock has none."""
    if f" path: {SHARDS}\n" not in (text_at(clone.home, clone.head, LOCK) or ""):
        return None
    with opened(clone.home, clone.head, "the data of HEAD, which new ones are compared with") as files:
        manifest, index = (files.read_bytes(f"{SHARDS}/{name}") for name in (MANIFEST, INDEX))
    return Statistics.of(parse_manifest(manifest, f"{SHARDS} of HEAD"), index)
