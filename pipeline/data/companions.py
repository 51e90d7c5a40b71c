"""Small files beside the tars by which other readers open them: Energon's indexes and wids' lists of shards.

They repeat what the tars and the manifest hold; nothing here reads them.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.data.index import Manifest
from pipeline.data.split import SPLITS

_META = ".nv-meta"
_DATASET = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"  # samples as they are: file kind -> content


def write_tar_index(tar: Path, starts: NDArray[np.int64]) -> None:
    """Write NAME.tar.idx: where each sample starts and where the last one ends, as little-endian u64 [N + 1]."""
    path = tar.with_name(f"{tar.name}.idx")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(starts.astype("<u8").tobytes())
    temporary.replace(path)


def write_lists(folder: Path, manifest: Manifest) -> None:
    """Write what Energon and wids read instead of the manifest, into the folder of shards."""
    counts = {shard.name: shard.rows for shard in manifest.shards}
    files.write_json(folder / _META / ".info.json", {"shard_counts": counts})
    files.write_text(folder / _META / "split.yaml", _splits(manifest))
    files.write_text(folder / _META / "dataset.yaml", _DATASET)
    for split in SPLITS:
        shards = [
            {"url": shard.name, "nsamples": shard.rows, "filesize": shard.bytes} for shard in manifest.of_split(split)
        ]
        if shards:  # wids opens no empty list
            name = f"{manifest.source}-{split}"
            content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}
            files.write_json(folder / f"wids-{split}.json", content)


def _splits(manifest: Manifest) -> str:
    text = "split_parts:\n"
    for split in SPLITS:
        shards = manifest.of_split(split)
        text += f"  {split}:{'' if shards else ' []'}\n"
        text += "".join(f"  - {shard.name}\n" for shard in shards)
    return text + "exclude: []\n"
