"""dSprites: the rendering keeps to its definition, and the published file is read as it is."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.config import DspritesSource
from pipeline.data.sources import dsprites
from pipeline.data.sources.base import ROWS, Source
from pipeline.data.sources.dsprites import FACTORS, open_dsprites, render, sprite
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_dsprites(DspritesSource(kind="dsprites"), tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def sprites() -> np.ndarray:
    return np.stack([sprite(number) for number in range(720)]).reshape(3, 6, 40, 33, 33)


def test_the_rendering_says_that_it_is_one_and_has_every_combination(source: Source) -> None:
    assert source.name == "dsprites (rendered)"
    assert (source.rows, source.pixels, source.official) == (737_280, (64, 64, 1), ())
    assert source.classes == ("square", "ellipse", "heart")
    assert source.attributes == ("scale", "orientation", "position_x", "position_y")
    assert [part.rows for part in source.partitions] == [16_384] * 45


def test_the_rendering_is_the_same_on_every_machine(source: Source) -> None:
    digest = "6180c76cc7bc2fbaf78536e5ee1abe039450d1311ad4853d671f80b5cfe0ec35"
    assert source.digests == {"rendered sprites": digest}


def test_factors_vary_in_the_published_order_the_last_one_fastest(source: Source) -> None:
    batch = next(pickle.loads(pickle.dumps(source.partitions[-1])).batches())
    assert batch.schema == ROWS
    row = 44 * 16_384 + 1025
    factors = np.unravel_index(row, FACTORS)
    assert batch["id"][1025].as_py() == "dsprites-2-5-{:02d}-{:02d}-{:02d}".format(*factors[2:])
    assert batch["label"][1025].as_py() == 2
    values = [1.0, factors[2] * 2 * np.pi / 39, factors[3] / 31, factors[4] / 31]
    np.testing.assert_allclose(batch["attributes"][1025].as_py(), values, rtol=1e-6)
    image = np.frombuffer(batch["image"][1025].as_py(), np.uint8).reshape(64, 64)
    down, right = 16 + factors[4], 16 + factors[3]
    np.testing.assert_array_equal(image[down - 16 : down + 17, right - 16 : right + 17] // 255, sprite(row // 1024))


def test_ids_are_distinct(source: Source) -> None:
    first = pa.concat_arrays([batch["id"] for part in source.partitions[:2] for batch in part.batches()])
    assert first[0].as_py() == "dsprites-0-0-00-00-00"
    assert len(first.unique()) == len(first) == 2 * 16_384


def test_the_sprite_moves_by_whole_pixels_and_is_never_cut() -> None:
    images = render(719, 1).reshape(32, 32, 64, 64)
    assert set(np.unique(images)) == {0, 255}
    assert (images.sum(axis=(2, 3), dtype=int) == 255 * sprite(719).sum()).all()
    np.testing.assert_array_equal(images[0, 0][:40, :40], images[3, 2][2:42, 3:43])


def test_no_image_is_black_and_shapes_differ_in_every_size(sprites: np.ndarray) -> None:
    areas = sprites.sum(axis=(3, 4))
    assert areas.min() > 80
    assert (np.diff(areas.mean(axis=2), axis=1) > 30).all()  # a larger scale is larger
    for scale in range(6):
        sets = [{mask.tobytes() for mask in sprites[shape, scale]} for shape in range(3)]
        assert len(set.union(*sets)) == sum(len(masks) for masks in sets)


def test_orientation_turns_clockwise_and_ends_where_it_began(sprites: np.ndarray) -> None:
    np.testing.assert_array_equal(sprites[:, :, 0], sprites[:, :, 39])
    down, right = np.nonzero(sprites[1, 5, 4])  # the ellipse, about 37 degrees
    assert np.corrcoef(down, right)[0, 1] > 0.5
    square, heart = sprites[0, 5, 0], sprites[2, 5, 0]
    assert square.sum() == square[6:27, 6:27].sum() == 21 * 21
    np.testing.assert_array_equal(heart, heart[:, ::-1])
    assert heart[:16].sum() > heart[17:].sum()  # stands on its tip


def test_as_many_sprites_differ_as_the_module_says(sprites: np.ndarray) -> None:
    distinct = {mask.tobytes() for mask in sprites.reshape(720, -1)}
    assert f"of the 720 sprites {len(distinct)} differ" in str(dsprites.__doc__)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like the published one, with 2048 of its rows."""
    monkeypatch.setattr(dsprites, "ROWS", 2048)
    factors = np.stack(np.unravel_index(np.arange(2048), FACTORS), axis=1)
    values = np.stack([values[factors[:, 1 + at]] for at, values in enumerate(dsprites._VALUES)], axis=1)
    images = (render(0, 2) // 255).astype(np.uint8)
    images[5, 0, 0] = 7
    white = np.zeros((2048, 1))
    np.savez_compressed(
        tmp_path / "dsprites.npz",
        imgs=images,
        latents_classes=np.hstack([white, factors]).astype(np.int64),
        latents_values=np.hstack([white + 1, factors[:, :1] + 1, values]),
        metadata=np.array({"never": "unpickled"}, object),
    )
    return tmp_path / "dsprites.npz"


def test_the_published_file_gives_its_pixels_labels_and_latents(published: Path, tmp_path: Path) -> None:
    source = open_dsprites(DspritesSource(kind="dsprites", path=str(published)), tmp_path / "downloads")
    assert source.name == "dsprites"
    assert source.digests == {"dsprites.npz": hashlib.sha256(published.read_bytes()).hexdigest()}
    batch = next(pickle.loads(pickle.dumps(source.partitions[0])).batches())
    expected = next(dsprites._Rendered(0, 2048).batches())
    for column in ("id", "label", "attributes"):
        assert batch[column].equals(expected[column])
    assert batch["image"][0].equals(expected["image"][0])
    assert (batch["image"][5].as_py(), batch["error"][5].as_py()) == (None, "pixel_range")
    assert batch["error"].null_count == 2047


def test_another_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", imgs=np.zeros((2, 64, 64), np.uint8))
    with pytest.raises(UserError) as caught:
        open_dsprites(DspritesSource(kind="dsprites", path=str(tmp_path / "other.npz")), tmp_path)
    assert str(caught.value) == (
        f"data.source.path (latents_classes): {tmp_path}/other.npz has no array 'latents_classes'; known: imgs"
    )
    np.savez(tmp_path / "few.npz", imgs=np.zeros((2, 64, 64), np.uint8), latents_classes=0, latents_values=0)
    with pytest.raises(UserError) as caught:
        open_dsprites(DspritesSource(kind="dsprites", path=str(tmp_path / "few.npz")), tmp_path)
    assert str(caught.value) == (
        f"data.source.path: {tmp_path}/few.npz: expected the published dSprites, its imgs [737280, 64, 64], found "
        "uint8 [2, 64, 64]; fetch it again, or set the path to null to render the images"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; set it to the published .npz, or to null to render"):
        open_dsprites(DspritesSource(kind="dsprites", path=str(tmp_path / "none.npz")), tmp_path)
