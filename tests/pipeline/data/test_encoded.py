"""PNG and JPEG shards: every member as in the raw shard but the image, and raw shards again when they are read."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prepared_data import prepare_random

from pipeline.data.config import ShardConfig
from pipeline.data.encoded import decode, encode, transcode
from pipeline.data.shape import Shape
from pipeline.data.shard_plan import read_dataset
from pipeline.data.shards import write_here
from pipeline.data.tar import Layout
from pipeline.errors import UserError

RAW = ShardConfig(seed=0, shard_bytes=60_000)
PNG = ShardConfig(seed=0, shard_bytes=60_000, encoding="png")
JPEG = ShardConfig(seed=0, shard_bytes=60_000, encoding="jpeg", jpeg_quality=90)


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}


def made_raw(shards: Path, name: str, layout: Layout, to: Path) -> bytes:
    rows = pq.read_table(shards / "index.parquet").to_pylist()
    mine = [row for row in rows if row["shard"] == name]
    offsets = np.array([row["offset"] for row in mine])
    transcode(shards / name, layout, offsets, np.array([row["size"] for row in mine]), to)
    return to.read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_shards_become_the_raw_shards_bit_for_bit(tmp_path: Path, channels: int) -> None:
    data = prepare_random(
        tmp_path / "data", (90, 20), shape=Shape(7, 5, channels), attributes=("a", "b"), embedding=3
    )  # fmt: skip
    _, layout = read_dataset(data)
    raw = {path.name: path.read_bytes() for path in write_here(data, RAW).rglob("*.tar")}
    shards = write_here(data, PNG)
    names = sorted(str(path.relative_to(shards)) for path in shards.rglob("*.tar"))
    assert len(names) == len(raw) > 4
    for name in names:
        assert made_raw(shards, name, layout, tmp_path / "raw.tar") == raw[Path(name).name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "raw.tar"]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_shards_hold_the_file_that_pillow_decodes(tmp_path: Path, channels: int) -> None:
    data = prepare_random(tmp_path / "data", shape=Shape(16, 8, channels))
    _, layout = read_dataset(data)
    shards = write_here(data, JPEG)
    tar = shards / "train/train-000000.tar"
    files = {name: content for name, content in members(tar).items() if name.endswith(".jpg")}
    content = np.frombuffer(made_raw(shards, "train/train-000000.tar", layout, tmp_path / "raw.tar"), np.uint8)
    images = layout.images(layout.samples(content, len(files)))
    for image, file in zip(images, files.values(), strict=True):
        picture = Image.open(io.BytesIO(file))
        np.testing.assert_array_equal(image, np.asarray(picture).reshape(-1))
        assert channels == 1 or {(layer[1], layer[2]) for layer in picture.layer} == {(1, 1)}, "colour at full size"


def test_an_encoded_tar_differs_from_the_raw_one_in_its_images_alone(tmp_path: Path) -> None:
    data = prepare_random(tmp_path / "data", shape=Shape(4, 4, 3), attributes=("a",), embedding=2)
    raw = members(write_here(data, RAW) / "val/val-000000.tar")
    png = members(write_here(data, PNG) / "val/val-000000.tar")
    assert [name.replace(".png", ".npy") if "embedding" not in name else name for name in png] == list(raw)
    for name, content in png.items():
        if name.endswith(".png"):
            pixels = np.load(io.BytesIO(raw[name.replace(".png", ".npy")]), allow_pickle=False)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
        else:
            assert content == raw[name]


def test_smooth_images_survive_jpeg_nearly() -> None:
    shape = Shape(16, 16, 3)
    image = np.add.outer(np.arange(16), np.arange(16))[:, :, None] * np.array([1, 2, 3], np.uint8)
    flat = image.astype(np.uint8).reshape(-1)
    found = decode(encode(flat, shape, "jpeg", 95), shape)
    assert np.abs(found.astype(int) - flat).max() <= 8
    np.testing.assert_array_equal(decode(encode(flat, shape, "png", 1), shape), flat)


@pytest.mark.parametrize(("config", "channels", "allowed"), [(JPEG, 2, "1, 3"), (PNG, 5, "1, 2, 3, 4")])
def test_channels_that_a_format_lacks_are_refused(
    tmp_path: Path, config: ShardConfig, channels: int, allowed: str
) -> None:
    data = prepare_random(tmp_path / "data", shape=Shape(2, 2, channels))
    expected = f"shard.encoding: {config.encoding} holds images of {allowed} channels, found {channels}; set it to raw"
    with pytest.raises(UserError, match=expected):
        write_here(data, config)
    assert not (data / "shards").exists()


@pytest.mark.parametrize("fault", ["damaged", "other size", "cut off"])
def test_a_tar_that_is_not_what_the_index_says_is_named(tmp_path: Path, fault: str) -> None:
    data = prepare_random(tmp_path / "data", shape=Shape(9, 9, 1))
    _, layout = read_dataset(data)
    shards = write_here(data, PNG)
    tar = shards / "val/val-000000.tar"
    content = bytearray(tar.read_bytes())
    at = content.index(b"\x89PNG")
    if fault == "damaged":
        content[at : at + 60] = bytes(60)
    elif fault == "cut off":
        content = content[: at + 20]
    else:
        layout = Layout(Shape(9, 3, 3), 3)
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"val-000000.tar: .*(not the image that was written|cut off after)"):
        made_raw(shards, "val/val-000000.tar", layout, tmp_path / "raw.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
