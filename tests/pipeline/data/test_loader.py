"""Batches: every row once an epoch for any number of ranks, resumed anywhere; damage is found at opening."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import Made, make_shards

from pipeline.data import device_cache, split_reader
from pipeline.data.config import ReadConfig
from pipeline.data.index import ShardEntry, read_manifest
from pipeline.data.loader import Loader, Split, open_split
from pipeline.data.order import order
from pipeline.data.shape import Shape
from pipeline.data.store import Store, open_store
from pipeline.errors import UserError
from vae_core.batch import Batch

CPU = torch.device("cpu")
GENERATIONS = ([17, 16, 17, 16, 17], [9, 9, 8])
quick = settings(max_examples=20)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two generations of colour images with labels, attributes and embeddings. Not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    splits = {"train": GENERATIONS, "val": [[12, 11]], "test": [[5]]}
    return make_shards(folder, splits, shape=Shape(4, 3, 3), attributes=("width", "slant"), embedding=5)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> ReadConfig:
    return ReadConfig(cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def split(made: Made, read: ReadConfig) -> Split:
    return open_split(made.folder, "train", read)


class Elsewhere:
    """A store whose shards have to be fetched; `fetched` tells which were, `broken` which cannot be."""

    def __init__(self, store: Store, broken: str = "") -> None:
        self._store, self._broken = store, broken
        self.manifest, self.location, self.local = store.manifest, store.location, False
        self.fetched: list[str] = []
        self.index = store.index

    def raw(self, entry: ShardEntry) -> Path:
        self.fetched.append(entry.name)
        if entry.name == self._broken:
            raise UserError(f"{entry.name}: gone")
        return self._store.raw(entry)


@pytest.fixture
def elsewhere(made: Made, read: ReadConfig) -> Callable[..., tuple[Split, Elsewhere]]:
    def make(broken: str = "", cache_bytes: int = 10**9) -> tuple[Split, Elsewhere]:
        store: Any = Elsewhere(open_store(made.folder, read), broken)
        return Split(store, "train", cache_bytes=cache_bytes), store

    return make


def loader(split: Split, batch: int = 20, rank: int = 0, world: int = 1, window: int = 2, lanes: int = 1) -> Loader:
    return Loader(split, seed=3, window_shards=window, global_batch_size=batch, rank=rank, world=world, lanes=lanes)


def joined(batches: list[Batch]) -> list[torch.Tensor]:
    """The ranks' parts of one global batch, in its order, without padding."""
    place = torch.cat([batch.position[batch.weight == 1] for batch in batches])
    assert torch.equal(place.sort().values, torch.arange(len(place)))
    assert {batch.global_rows for batch in batches} == {len(place)}
    names = [name for name, _ in batches[0].tensors() if name not in ("weight", "position")]
    return [
        torch.cat([getattr(batch, name)[batch.weight == 1] for batch in batches])[place.argsort()] for name in names
    ]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    """Bit for bit, in the same places of memory."""
    for one, other in zip(found, expected, strict=True):
        assert one.global_rows == other.global_rows
        for (name, ours), (same_name, theirs) in zip(one.tensors(), other.tensors(), strict=True):
            assert (name, ours.dtype, ours.stride()) == (same_name, theirs.dtype, theirs.stride())
            assert torch.equal(ours, theirs), name


def test_a_split_knows_its_data(split: Split, made: Made) -> None:
    assert (split.spec.channels, split.spec.height, split.spec.width, split.spec.num_classes) == (3, 4, 3, 3)
    assert len(split) == sum(split.shard_rows) == split.manifest.counts["train"] == sum(map(sum, GENERATIONS))
    assert split.generations == (0, 0, 0, 0, 0, 1, 1, 1)
    assert split.digest == split.manifest.digest
    assert split.local


def test_rows_are_given_in_the_order_asked_for(split: Split, made: Made) -> None:
    rows = np.random.default_rng(0).integers(0, len(split), 500)
    np.testing.assert_array_equal(split.images(rows), made.images["train"][rows])
    np.testing.assert_array_equal(split.labels(rows), made.labels["train"][rows])
    np.testing.assert_array_equal(split.attributes(rows), made.attributes["train"][rows])
    np.testing.assert_array_equal(split.embeddings(rows), made.embeddings["train"][rows])
    none = np.empty(0, np.int64)
    assert split.images(none).shape == (0, 4, 3, 3)
    assert split.embeddings(none).shape == (0, 5)
    assert split.batch(none).global_rows == 0


def test_a_batch_holds_its_rows_channels_first(split: Split, made: Made) -> None:
    rows = np.array([40, 3, 3, 108])
    batch = split.batch(rows)
    assert batch.images.shape == (4, 3, 4, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last), "the bytes were not moved"
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), made.images["train"][rows])
    assert batch.attributes is not None
    assert batch.embedding is not None
    assert (batch.attributes.dtype, batch.embedding.dtype) == (torch.float32, torch.float32)
    batch.images[0] = 0  # a copy: nothing is written to the shards
    np.testing.assert_array_equal(split.images(rows), made.images["train"][rows])


def test_data_without_labels_attributes_and_embeddings(tmp_path: Path, read: ReadConfig) -> None:
    made = make_shards(tmp_path / "shards", {"train": [[4, 3]]}, classes=0)
    split = open_split(str(made.folder), "train", read)
    batch = split.batch(np.array([6, 0]))
    assert (batch.labels, batch.attributes, batch.embedding) == (None, None, None)
    assert batch.images.is_contiguous(), "one channel first or last is the same"
    assert_equal(list(loader(split).on(CPU, cache=True)), list(loader(split)))


def test_a_shard_is_mapped_when_it_is_first_read(made: Made, read: ReadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[str] = []
    original = Store.raw

    def raw(self: Store, entry: ShardEntry) -> Path:
        mapped.append(entry.name)
        return original(self, entry)

    monkeypatch.setattr(Store, "raw", raw)
    split = open_split(made.folder, "train", read)
    assert mapped == []
    for _ in range(2):
        split.images(np.array([0, 18, 5]))
    assert mapped == ["train/train-000000.tar", "train/train-000001.tar"]


def test_a_batch_has_the_rows_of_the_order(split: Split, made: Made) -> None:
    rows = order(split.shard_rows, seed=3, epoch=1, window_shards=2, generations=split.generations, lanes=2)
    for step, batch in enumerate(loader(split, lanes=2).epoch(1)):
        expected = rows[step * 20 : (step + 1) * 20]
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), made.images["train"][expected])
        np.testing.assert_array_equal(batch.labels, made.labels["train"][expected])
        np.testing.assert_array_equal(batch.attributes, made.attributes["train"][expected])
        assert (batch.weight.dtype, batch.position.dtype) == (torch.float32, torch.int64)


@quick
@given(st.integers(1, 130), st.integers(1, 16), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    split: Split, batch: int, world: int, window: int, lanes: int, epoch: int
) -> None:
    alone = [joined([part]) for part in loader(split, batch, window=window, lanes=lanes).epoch(epoch)]
    ranks = [loader(split, batch, rank, world, window, lanes).epoch(epoch) for rank in range(world)]
    together = [joined(list(parts)) for parts in zip(*ranks, strict=True)]
    assert len(alone) == len(together) == loader(split, batch).steps_per_epoch
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert sum(len(parts[0]) for parts in together) == len(split)


@quick
@given(
    st.integers(5, 60),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 9)), min_size=1, max_size=4),
)
def test_a_run_goes_on_at_any_step_with_other_ranks(
    split: Split, batch: int, lanes: int, legs: list[tuple[int, int]]
) -> None:
    """`legs`: how many ranks, for how many steps; the last of them to the end of the second epoch."""
    total = 2 * loader(split, batch).steps_per_epoch
    whole = [joined([part]) for epoch in range(2) for part in loader(split, batch, lanes=lanes).epoch(epoch)]
    seen: list[list[torch.Tensor]] = []
    state = loader(split, batch, lanes=lanes).state_dict()
    for leg, (world, steps) in enumerate(legs):
        ranks = [loader(split, batch, rank, world, lanes=lanes) for rank in range(world)]
        for rank in ranks:
            rank.load_state_dict(json.loads(json.dumps(state)))
        seen += run(ranks, total - len(seen) if leg == len(legs) - 1 else min(steps, total - len(seen)))
        state = ranks[0].state_dict()
        assert all(rank.state_dict() == state for rank in ranks)
    assert len(seen) == len(whole)
    assert all(same(a, b) for a, b in zip(seen, whole, strict=True))


def run(ranks: list[Loader], steps: int) -> list[list[torch.Tensor]]:
    seen: list[list[torch.Tensor]] = []
    while len(seen) < steps:
        for parts in zip(*ranks, strict=True):
            seen.append(joined(list(parts)))
            if len(seen) == steps:
                break
    return seen


def test_a_plain_loop_over_epochs_goes_on_where_it_was_left(split: Split) -> None:
    whole = [batch for epoch in range(3) for batch in loader(split).epoch(epoch)]
    first = loader(split)
    assert len(first) == first.steps_per_epoch == 6
    seen = []
    for batch in first:
        seen.append(batch)
        if len(seen) == 4:
            break
    resumed = loader(split)
    resumed.load_state_dict(first.state_dict())
    for _ in range(resumed.next_epoch, 3):
        seen += list(resumed)
    assert (resumed.next_epoch, resumed.next_step) == (3, 0)
    assert_equal(seen, whole)


def test_evaluation_sees_every_row_once_in_order(split: Split, made: Made) -> None:
    for world in (1, 3, 7):
        ranks = [loader(split, rank=rank, world=world).sequential(40) for rank in range(world)]
        images = torch.cat([joined(list(parts))[0] for parts in zip(*ranks, strict=True)])
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), made.images["train"])


def test_more_ranks_than_rows_give_some_ranks_only_padding(split: Split) -> None:
    parts = [next(loader(split, batch=2, rank=rank, world=5).epoch(0)) for rank in range(5)]
    assert [part.weight.tolist() for part in parts] == [[1], [1], [0], [0], [0]]
    assert all(part.images.shape == (1, 3, 4, 3) for part in parts)


def test_the_state_is_six_scalars(split: Split) -> None:
    state = loader(split, lanes=4).state_dict()
    assert sorted(state) == ["digest", "epoch", "global_batch_size", "seed", "step", "version"]
    assert all(isinstance(value, int | str) for value in state.values())
    assert state["version"] == "2/window=2/lanes=4"


@pytest.mark.parametrize(
    ("key", "value"),
    [("digest", "f" * 64), ("global_batch_size", 51), ("seed", 4), ("version", 1), ("version", "2/window=3/lanes=1"),
     ("version", "2/window=2/lanes=8")],
)  # fmt: skip
def test_a_state_of_other_data_or_order_is_refused(split: Split, key: str, value: object) -> None:
    state = {**loader(split).state_dict(), key: value}
    with pytest.raises(UserError, match=f"checkpoint: {key}: it was written with {value}, and this run has "):
        loader(split).load_state_dict(state)


def test_a_rank_beyond_the_world_is_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        loader(split, rank=2, world=2)


@pytest.mark.parametrize("world", [1, 3])
def test_a_split_kept_on_the_device_gives_the_same_batches(split: Split, world: int) -> None:
    for rank in range(world):
        cached = loader(split, rank=rank, world=world).on(CPU, cache=True)
        plain = loader(split, rank=rank, world=world)
        assert_equal([*cached, *cached.sequential(33)], [*plain, *plain.sequential(33)])
        assert cached.state_dict() == plain.state_dict()


def test_a_split_that_does_not_fit_on_the_device_names_the_remedy(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_cache.cache_bytes(split) == len(split) * (36 + 8 + 8 + 20)
    monkeypatch.setattr(device_cache, "_free_bytes", lambda device: 7847)
    with pytest.raises(UserError) as error:
        loader(split).on(CPU, cache=True)
    assert str(error.value) == (
        "params.yaml: compute.device_cache: the train split takes 7,848 bytes and cpu has 7,847 free; "
        "set it to auto or false"
    )


def test_auto_keeps_a_split_on_a_gpu_that_has_room(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    assert not device_cache.wanted(split, CPU, "auto")
    assert not device_cache.wanted(split, gpu, False)
    for free, wanted in ((26159, False), (26160, True)):  # the split takes 7,848
        monkeypatch.setattr(device_cache, "_free_bytes", lambda device, free=free: free)
        assert device_cache.wanted(split, gpu, "auto") is wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cache", [False, True])
def test_a_gpu_gets_the_same_batches(split: Split, cache: bool) -> None:
    gpu = torch.device("cuda", 0)
    found = list(loader(split).on(gpu, cache))
    assert all(tensor.device == gpu for batch in found for _, tensor in batch.tensors())
    assert_equal([batch.to(CPU) for batch in found], list(loader(split)))


def test_shards_from_elsewhere_give_the_same_batches(made: Made, split: Split, tmp_path: Path) -> None:
    far = open_split(f"file://{made.folder}", "train", ReadConfig(cache=str(tmp_path)))
    assert not far.local
    plain, fetching, cached = loader(split), loader(far), loader(far).on(CPU, cache=True)
    expected = [batch for _ in range(2) for batch in plain]
    assert_equal([batch for _ in range(2) for batch in fetching], expected)
    assert_equal([batch for _ in range(2) for batch in cached], expected)
    assert_equal(list(fetching.sequential(25)), list(plain.sequential(25)))


def test_a_cache_smaller_than_a_window_costs_time_and_no_rows(elsewhere, split: Split) -> None:
    far, store = elsewhere(cache_bytes=1)
    assert far.mapped_shards == 1
    assert_equal(list(loader(far)), list(loader(split)))
    assert len(store.fetched) > len(far.shard_rows)


def test_each_shard_from_elsewhere_is_fetched_once_an_epoch_and_before_it_is_used(elsewhere) -> None:
    far, store = elsewhere()
    batches = iter(loader(far, batch=10, window=1))
    next(batches)
    settled = set(store.fetched)
    assert len(settled) < len(far.shard_rows), "not all at once"
    list(batches)
    assert sorted(store.fetched) == sorted(entry.name for entry in far.manifest.of_split("train"))


def test_a_rank_fetches_the_shards_of_its_own_lanes(elsewhere) -> None:
    fetched = []
    for rank in range(4):
        far, store = elsewhere()
        list(loader(far, batch=16, rank=rank, world=4, lanes=4))
        fetched += sorted(set(store.fetched))
    assert len(set(fetched)) == 8
    assert len(fetched) <= 8 + 3 + 3, "shards at borders are shared; the last row of all pads the last batch of 3 ranks"


def test_the_state_tells_what_was_used_and_not_what_was_fetched(elsewhere, split: Split) -> None:
    far, _ = elsewhere()
    fetching = loader(far)
    seen = []
    for batch in fetching:
        seen.append(batch)
        if len(seen) == 3:
            break
    assert (fetching.next_epoch, fetching.next_step) == (0, 3)
    assert_equal([*seen, *fetching], list(loader(split)))
    assert (fetching.next_epoch, fetching.next_step) == (1, 0)


def test_a_shard_that_cannot_be_fetched_is_an_error_where_it_is_used(elsewhere, split: Split) -> None:
    batches = list(loader(split, batch=10, window=1))
    last = split.shards_of(
        order(split.shard_rows, seed=3, epoch=0, window_shards=1, generations=split.generations)[-1:]
    )
    (broken,) = (split.manifest.of_split("train")[shard].name for shard in last)
    far, _ = elsewhere(broken)
    seen: list[Batch] = []
    with pytest.raises(UserError, match=f"^{broken}: gone$"):
        seen.extend(loader(far, batch=10, window=1))  # keeps what came before the error
    assert len(batches) - 3 <= len(seen) < len(batches)
    assert_equal(seen, batches[: len(seen)])


def test_threads_end_with_the_iteration(elsewhere) -> None:
    far, _ = elsewhere()
    before = threading.active_count()
    batches = loader(far).epoch(0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_a_file_that_left_the_cache_is_fetched_again(
    elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, store = elsewhere()
    paths = iter([tmp_path / "gone", store._store.raw(far.manifest.of_split("train")[0])])
    monkeypatch.setattr(store, "raw", lambda entry: next(paths))
    assert len(far.images(np.array([0]))) == 1
    monkeypatch.setattr(store, "raw", lambda entry: tmp_path / "gone")
    with pytest.raises(UserError, match="gone: cannot be read"):
        far.images(np.array([20]))
    assert split_reader.MAP_ATTEMPTS == 3


@pytest.fixture
def copied_made(made: Made, tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    return Path(shutil.copytree(made.folder, tmp_path / "shards"))


def truncate(folder: Path) -> None:
    path = folder / "train/train-000001.tar"
    path.write_bytes(path.read_bytes()[:-10240])


def flip(folder: Path, at: int) -> None:
    path = folder / "train/train-000001.tar"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    first, second = folder / "train/train-000000.tar", folder / "train/train-000002.tar"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def edit(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"rows": ', '"rows": 1'))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"train/train-000001.tar: expected [\d,]+ bytes, found"),
    "flipped payload byte": (
        lambda folder: flip(folder, 700),
        "train-000001.tar: damaged or exchanged: expected sha256",
    ),
    "flipped header byte": (lambda folder: flip(folder, 3), "train-000001.tar: damaged or exchanged"),
    "flipped padding": (lambda folder: flip(folder, -1), "train-000001.tar: damaged or exchanged"),
    "missing": (lambda folder: (folder / "train/train-000001.tar").unlink(), "train-000001.tar: no such file"),
    "extra": (
        lambda folder: shutil.copy(folder / "val/val-000000.tar", folder / "train/more.tar"),
        "train/more.tar: the manifest does not name this shard",
    ),
    "swapped": (swap, "train/train-00000[02].tar: damaged or exchanged"),
    "edited manifest": (edit, "manifest.json: changed since it was written: digest [0-9a-f]{64}, content"),
    "broken manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not a manifest"),
    "empty manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: not a manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_file_and_remedy(copied_made: Path, read: ReadConfig, damage: str) -> None:
    inflict, message = DAMAGES[damage]
    sizes = {entry.name: entry.bytes for entry in read_manifest(copied_made).shards}
    assert sizes["train/train-000000.tar"] == sizes["train/train-000002.tar"]  # swapped, only their bytes tell
    open_split(copied_made, "train", read)
    inflict(copied_made)
    with pytest.raises(UserError, match=message) as error:
        open_split(copied_made, "train", read)
    assert f"rm -r {copied_made} && dvc checkout" in str(error.value)
    assert "`dvc repro -f shard`" in str(error.value)


def test_missing_shards_and_unknown_splits_are_named(tmp_path: Path, made: Made, read: ReadConfig) -> None:
    with pytest.raises(UserError, match=r"manifest.json: no such file; write the shards with `dvc repro shard`"):
        open_split(tmp_path, "train", read)
    with pytest.raises(UserError, match="no split 'training'; there are train, val, test"):
        open_split(made.folder, "training", read)


def test_a_manifest_of_another_version_is_refused(copied_made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.index.VERSION", 3)
    with pytest.raises(UserError, match="expected version 3, found 2"):
        read_manifest(copied_made)
