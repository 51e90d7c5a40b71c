"""The layout of a sample: what tarfile would write, with numbers that come back as they were."""

import io
import json
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.shape import Shape
from pipeline.data.tar import BLOCK, RECORD, Layout, end_zeros, key, keys

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
EXTREMES = [
    -0.0,
    0.0,
    1e-45,
    -1e-45,
    1.1754942e-38,
    3.4028234663852886e38,
    -3.4028234663852886e38,
    1 / 3,
    1e9,
    16777217,
]
NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=3, unique=True)


def filled(layout: Layout, rows: int, first: int) -> np.ndarray:
    """A tar of random rows."""
    random = np.random.default_rng(rows)
    tar = np.zeros(layout.file_bytes(rows), np.uint8)
    samples = layout.samples(tar, rows)
    everyone = np.arange(rows)
    layout.write_frame(samples, "val", first)
    layout.images(samples)[:] = random.integers(0, 256, (rows, layout.shape.size), np.uint8)
    if layout.classes:
        layout.write_labels(samples, everyone, random.integers(0, layout.classes, rows))
    if layout.attributes:
        values = random.normal(size=(rows, len(layout.attributes))).astype(np.float32)
        layout.write_attributes(samples, everyone, values)
    if layout.embedding:
        layout.embeddings(samples)[:] = random.normal(size=(rows, layout.embedding))
    return tar


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)),
    st.integers(0, 1001),
    NAMES.map(tuple),
    st.integers(0, 200),
    st.integers(1, 10),
    st.integers(0, 10**8 - 30),
)
def test_any_layout_is_what_tarfile_would_write(
    shape: tuple[int, int, int], classes: int, attributes: tuple[str, ...], embedding: int, rows: int, first: int
) -> None:
    layout = Layout(Shape(*shape), classes, attributes, embedding)
    tar = filled(layout, rows, first)
    assert tar.tobytes() == by_tarfile(layout, layout.samples(tar, rows), first)


def by_tarfile(layout: Layout, samples: np.ndarray, first: int) -> bytes:
    """The same samples written member by member."""
    stream = io.BytesIO()
    labels = layout.labels(samples) if layout.classes else []
    attributes = layout.attribute_values(samples)
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, image in enumerate(layout.images(samples)):
            members = {}
            if layout.classes:
                members["cls"] = f"{labels[row]:0{layout.label_digits}d}".encode()
            if layout.attributes:
                pairs = zip(layout.attributes, attributes[row].tolist(), strict=True)
                members["json"] = ("{" + ", ".join(f"{json.dumps(n)}:{v: .8e}" for n, v in pairs) + "}").encode()
            if layout.embedding:
                members["embedding.npy"] = npy(layout.embeddings(samples)[row])
            members["npy"] = npy(image.reshape(layout.shape))
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{key('val', first + row)}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@settings(max_examples=200)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20))
@example(list(zip(EXTREMES, EXTREMES[::-1], strict=True)))
def test_attributes_come_back_bit_for_bit_from_json_and_from_the_digits(pairs: list[tuple[float, float]]) -> None:
    layout = Layout(Shape(1, 1, 1), 0, ("a", 'b "ü"'))
    values = np.array(pairs, np.float32)
    samples = np.zeros((len(values), layout.stride), np.uint8)
    layout.write_frame(samples, "train", 0)
    layout.write_attributes(samples, np.arange(len(values)), values)
    found = [json.loads(bytes(sample[BLOCK:]).partition(b"\0")[0]) for sample in samples]
    assert [list(numbers) for numbers in found] == [list(layout.attributes)] * len(values)
    printed = np.array([list(numbers.values()) for numbers in found], np.float32)
    np.testing.assert_array_equal(printed.view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(layout.attribute_values(samples).view(np.uint32), values.view(np.uint32))


def test_random_bit_patterns_come_back() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    values = values[np.isfinite(values)][:, None]
    layout = Layout(Shape(1, 1, 1), 0, ("a",))
    samples = np.zeros((len(values), layout.stride), np.uint8)
    layout.write_attributes(samples, np.arange(len(values)), values)
    np.testing.assert_array_equal(layout.attribute_values(samples).view(np.uint32), values.view(np.uint32))
    texts = samples[:, BLOCK + 5 : BLOCK + 20].copy().view("S15")[:, 0]
    parsed = np.array([float(text) for text in texts], np.float32)
    np.testing.assert_array_equal(parsed.view(np.uint32), values[:, 0].view(np.uint32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    layout = Layout(Shape(1, 1, 1), 0, ("a",))
    with pytest.raises(AssertionError, match="JSON has no such number"):
        layout.write_attributes(np.zeros((1, layout.stride), np.uint8), np.arange(1), np.array([[value]], np.float32))


def test_arrays_are_aligned_and_the_image_is_last() -> None:
    layout = Layout(Shape(28, 28, 1), 10, ("a", "b"), 7)
    tar = filled(layout, 3, 0)
    samples = layout.samples(tar, 3)
    assert layout.image_at % 64 == 0
    assert layout.embeddings(samples).base is not None
    with tarfile.open(fileobj=io.BytesIO(tar.tobytes())) as opened:
        kinds = [member.name.split(".", 1)[1] for member in opened]
    assert kinds == ["cls", "json", "embedding.npy", "npy"] * 3


def test_content_tells_where_every_sample_and_image_is() -> None:
    layout = Layout(Shape(4, 5, 3), 10, ("a",))
    samples = layout.samples(filled(layout, 9, 0), 9)
    content = layout.content(samples)
    data = bytes(content.data)
    offsets = content.starts[:-1] + layout.payload_at
    for offset, size, crc32, image in zip(offsets, content.sizes, content.crc32, layout.images(samples), strict=True):
        assert zlib.crc32(data[offset : offset + size]) == crc32
        np.testing.assert_array_equal(np.load(io.BytesIO(data[offset : offset + size])).reshape(-1), image)
    assert content.starts[-1] == len(data) == len(samples) * layout.stride


@given(st.integers(0, 10**9))
def test_a_tar_ends_with_two_empty_blocks_and_a_whole_record(size: int) -> None:
    size *= BLOCK
    assert (size + end_zeros(size)) % RECORD == 0
    assert 2 * BLOCK <= end_zeros(size) < RECORD + 2 * BLOCK


def test_keys_are_the_same_one_by_one_and_together() -> None:
    assert [bytes(name).decode() for name in keys("test", 98, 5)] == [key("test", row) for row in range(98, 103)]
