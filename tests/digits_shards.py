"""Scikit-learn's digits as shards, written without Ray: 1163 train, 304 val, 330 test."""

from pathlib import Path

from pipeline.data.config import DataConfig, PublishedSource, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.shards import write_here
from pipeline.data.sources.digits import open_digits


def write_digits(data: Path) -> Path:
    """The folder of shards, below `data`."""
    config = DataConfig(
        source=PublishedSource(kind="digits"), validation_fraction=0.2, test_fraction=0.2, max_bad_fraction=0.0
    )
    prepare([open_digits(None)], config, data)
    return write_here(data, ShardConfig(seed=0, shard_bytes=400_000))
