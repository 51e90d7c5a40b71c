"""permute the prepared rows and write them as WebDataset tars with index and manifest -> data/shards"""

from pathlib import Path

from pipeline.config import Params
from pipeline.data.shards import write_shards


def main(params: Params, family: str | None) -> None:
    write_shards(Path("data"), params.shard, params.compute)
