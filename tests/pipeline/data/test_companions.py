"""The shards as other readers open them: WebDataset, wids, Energon, tar."""

import gc
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from prepared_data import prepare_random

from pipeline.data.config import ShardConfig
from pipeline.data.shape import Shape
from pipeline.data.shards import write_here
from pipeline.data.split import SPLITS

ATTRIBUTES = ("size", "x")


@pytest.fixture(scope="module", params=["raw", "png"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("companions") / "data"
    prepare_random(data, (120, 40), shape=Shape(6, 5, 3), attributes=ATTRIBUTES, embedding=4)
    return write_here(data, ShardConfig(seed=0, shard_bytes=60_000, encoding=request.param))


def expected(shards: Path, split: str) -> dict[str, dict[str, Any]]:
    """The samples of a split, through tarfile alone."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((shards / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name, kind = member.name.split(".", 1)
                found.setdefault(name, {})[kind] = tar.extractfile(member).read()
    return found


def assert_same(read: dict[str, Any], content: dict[str, bytes]) -> None:
    """What another reader decoded is what the files hold."""
    assert {kind for kind in read if not kind.startswith("__")} == set(content)
    assert int(read["cls"]) == int(content["cls"])
    assert read["json"] == json.loads(content["json"])
    np.testing.assert_array_equal(read["embedding.npy"], np.load(io.BytesIO(content["embedding.npy"])))
    if "npy" in content:
        np.testing.assert_array_equal(read["npy"], np.load(io.BytesIO(content["npy"])))
    else:
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(content["png"])))
        np.testing.assert_array_equal(np.asarray(read["png"]), pixels)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("split", SPLITS)
def test_plain_webdataset_reads_every_sample_once(shards: Path, split: str) -> None:
    import webdataset

    paths = [str(path) for path in sorted((shards / split).glob("*.tar"))]
    read = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode("pil"))
    wanted = expected(shards, split)
    assert [sample["__key__"] for sample in read] == list(wanted)
    for sample in read:
        assert_same(sample, wanted[sample["__key__"]])
    gc.collect()  # webdataset leaves its files open; closed here, they warn in no other test


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("split", ["train", "val"])
def test_wids_reads_any_sample_by_its_number(shards: Path, split: str, tmp_path: Path) -> None:
    wids = pytest.importorskip("wids")
    dataset = wids.ShardListDataset(str(shards / f"wids-{split}.json"), cache_dir=str(tmp_path), transformations="PIL")
    wanted = expected(shards, split)
    assert len(dataset) == len(wanted)
    for row in reversed(range(len(dataset))):
        sample = {kind.removeprefix("."): value for kind, value in dataset[row].items()}
        assert sample["__key__"] == list(wanted)[row]
        assert_same(sample, wanted[sample["__key__"]])
    dataset.close()
    gc.collect()


@pytest.mark.filterwarnings("ignore")
def test_energon_reads_every_sample_in_order_without_prepare(shards: Path) -> None:
    energon = pytest.importorskip("megatron.energon")

    @energon.stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return sample

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)

        @energon.stateless
        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    encoder = Encoder()
    dataset = energon.get_val_dataset(
        shards, split_part="val", worker_config=worker, batch_size=7, task_encoder=encoder
    )  # fmt: skip
    read = [sample for batch in energon.get_loader(dataset) for sample in batch]
    wanted = expected(shards, "val")
    assert [sample["__key__"] for sample in read] == list(wanted)
    for sample in read:
        if "png" in sample:  # Energon decodes images to floats [C, H, W] from 0 to 1
            sample["png"] = (np.asarray(sample["png"]).transpose(1, 2, 0) * 255).round().astype(np.uint8)
        assert_same(sample, wanted[sample["__key__"]])
    gc.collect()


@pytest.mark.filterwarnings("ignore")
def test_energon_knows_the_length_of_every_split(shards: Path) -> None:
    energon = pytest.importorskip("megatron.energon")
    config = pytest.importorskip("megatron.energon.dataset_config")
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    for split in SPLITS:
        dataset = config.get_dataset_from_config(shards, split_part=split, training=False, worker_config=worker)
        assert len(dataset) == len(expected(shards, split))


@pytest.mark.filterwarnings("ignore")
def test_tar_indexes_are_those_that_energon_writes(shards: Path) -> None:
    prepare = pytest.importorskip("megatron.energon.flavors.webdataset.prepare").WebdatasetPreparator
    path = pytest.importorskip("megatron.energon.epathlib").EPath
    for tar in sorted(shards.rglob("*.tar")):
        index = tar.with_name(f"{tar.name}.idx")
        ours, name = index.read_bytes(), str(tar.relative_to(shards))
        assert len(ours) % 8 == 0
        list(prepare._preprocess_tar(name, {name: 0}, path(shards), 50))
        assert index.read_bytes() == ours


def test_the_tar_of_the_system_lists_every_member(shards: Path) -> None:
    keys = pq.read_table(shards / "index.parquet")["key"].to_pylist()
    listed: list[str] = []
    for split in SPLITS:
        for tar in sorted((shards / split).glob("*.tar")):
            done = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True)
            assert done.stderr == ""
            listed += done.stdout.split()
    kinds = ["cls", "json", "embedding.npy", Path(listed[-1]).suffix[1:]]
    assert listed == [f"{key}.{kind}" for key in keys for kind in kinds]
