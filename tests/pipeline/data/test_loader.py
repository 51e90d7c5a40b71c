"""Batches: every row once an epoch for any number of ranks, resumed anywhere; damage is found at opening."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.index import read_manifest
from pipeline.data.loader import Loader, Split, open_split
from pipeline.data.order import order
from pipeline.errors import UserError
from vae_core.batch import Batch
from vae_core.config import DataSpec

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def split(digits: Path) -> Split:
    return open_split(digits / "shards", "val")


def loader(split: Split, batch: int = 50, rank: int = 0, world: int = 1, window: int = 2) -> Loader:
    return Loader(split, seed=3, window_shards=window, global_batch_size=batch, rank=rank, world=world)


def joined(batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of the ranks' parts of one global batch, in its order, without padding."""
    place = torch.cat([batch.position[batch.weight == 1] for batch in batches])
    images = torch.cat([batch.images[batch.weight == 1] for batch in batches])
    labels = torch.cat([batch.labels[batch.weight == 1] for batch in batches if batch.labels is not None])
    assert torch.equal(place.sort().values, torch.arange(len(place)))
    assert {batch.global_rows for batch in batches} == {len(place)}
    return images[place.argsort()], labels[place.argsort()]


def same(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_split_knows_its_shape(split: Split) -> None:
    assert split.spec == DataSpec(channels=1, height=8, width=8, num_classes=10)
    assert len(split) == sum(split.shard_rows) == split.manifest.counts["val"]
    assert split.digest == split.manifest.digest


def test_rows_are_given_in_the_order_asked_for(digits: Path) -> None:
    split = open_split(digits / "shards", "train")
    whole, labels = split.images(np.arange(len(split))), split.labels(np.arange(len(split)))
    rows = np.random.default_rng(0).integers(0, len(split), 500)
    np.testing.assert_array_equal(split.images(rows), whole[rows])
    np.testing.assert_array_equal(split.labels(rows), labels[rows])
    assert split.images(np.empty(0, np.int64)).shape == (0, 8, 8, 1)


def test_a_batch_has_the_rows_of_the_order(split: Split) -> None:
    rows = order(split.shard_rows, seed=3, epoch=1, window_shards=2)
    for step, batch in enumerate(loader(split).epoch(1)):
        expected = rows[step * 50 : (step + 1) * 50]
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        np.testing.assert_array_equal(batch.images[:, 0].numpy(), split.images(expected)[..., 0])
        np.testing.assert_array_equal(batch.labels.numpy(), split.labels(expected))
        assert (batch.weight.dtype, batch.position.dtype) == (torch.float32, torch.int64)


def test_channels_come_first(tmp_path: Path, make_source, make_rows, make_config, shard: Callable[..., Path]) -> None:
    from pipeline.data.ingest import prepare
    from pipeline.data.shape import Shape

    prepare(make_source(make_rows(60, size=18), Shape(2, 3, 3)), make_config(), tmp_path)
    split = open_split(shard(tmp_path), "train")
    batch = next(loader(split, batch=8).sequential(8))
    assert batch.images.shape == (8, 3, 2, 3)
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), split.images(np.arange(8)))


@quick
@given(st.integers(1, 400), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    split: Split, batch: int, world: int, window: int, epoch: int
) -> None:
    alone = [joined([part]) for part in loader(split, batch, window=window).epoch(epoch)]
    ranks = [loader(split, batch, rank, world, window).epoch(epoch) for rank in range(world)]
    together = [joined(list(parts)) for parts in zip(*ranks, strict=True)]
    assert len(alone) == len(together) == loader(split, batch).steps_per_epoch
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert sum(len(images) for images, _ in together) == len(split)


@quick
@given(st.integers(5, 90), st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_run_goes_on_at_any_step_with_other_ranks(
    split: Split, batch: int, before: int, after: int, data: st.DataObject
) -> None:
    uninterrupted = [joined([part]) for epoch in range(2) for part in loader(split, batch).epoch(epoch)]
    steps = loader(split, batch).steps_per_epoch
    stop = data.draw(st.integers(0, 2 * steps))
    ranks = [loader(split, batch, rank, before) for rank in range(before)]
    seen = run(ranks, stop)
    states = [rank.state_dict() for rank in ranks]
    assert all(state == states[0] for state in states)
    resumed = [loader(split, batch, rank, after) for rank in range(after)]
    for rank in resumed:
        rank.load_state_dict(json.loads(json.dumps(states[0])))
    seen += run(resumed, 2 * steps - stop)
    assert len(seen) == len(uninterrupted)
    assert all(same(a, b) for a, b in zip(seen, uninterrupted, strict=True))


def run(ranks: list[Loader], steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    while len(seen) < steps:
        for parts in zip(*(rank.epoch(rank.next_epoch, rank.next_step) for rank in ranks), strict=True):
            seen.append(joined(list(parts)))
            if len(seen) == steps:
                break
    return seen


def test_evaluation_sees_every_row_once_in_order(split: Split) -> None:
    for world in (1, 3, 7):
        ranks = [loader(split, rank=rank, world=world).sequential(40) for rank in range(world)]
        batches = [joined(list(parts)) for parts in zip(*ranks, strict=True)]
        images = torch.cat([images for images, _ in batches])
        np.testing.assert_array_equal(images[:, 0].numpy(), split.images(np.arange(len(split)))[..., 0])


def test_more_ranks_than_rows_give_some_ranks_only_padding(split: Split) -> None:
    parts = [next(loader(split, batch=2, rank=rank, world=5).epoch(0)) for rank in range(5)]
    assert [part.weight.tolist() for part in parts] == [[1], [1], [0], [0], [0]]
    assert all(part.images.shape == (1, 1, 8, 8) for part in parts)


def test_the_state_is_six_scalars(split: Split) -> None:
    state = loader(split).state_dict()
    assert sorted(state) == ["digest", "epoch", "global_batch_size", "seed", "step", "version"]
    assert all(isinstance(value, int | str) for value in state.values())


@pytest.mark.parametrize(
    ("key", "value"), [("digest", "f" * 64), ("global_batch_size", 51), ("seed", 4), ("version", 0)]
)
def test_a_state_of_other_data_or_order_is_refused(split: Split, key: str, value: object) -> None:
    state = {**loader(split).state_dict(), key: value}
    with pytest.raises(UserError, match=f"checkpoint: {key}: it was written with {value}, and this run has "):
        loader(split).load_state_dict(state)


def test_a_rank_beyond_the_world_is_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        loader(split, rank=2, world=2)


def truncate(folder: Path) -> None:
    path = folder / "train/train-000001.tar"
    path.write_bytes(path.read_bytes()[:-10240])


def flip(folder: Path, at: int) -> None:
    path = folder / "train/train-000001.tar"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    first, second = folder / "train/train-000000.tar", folder / "train/train-000001.tar"
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
    "swapped": (swap, "train/train-00000[01].tar: "),
    "edited manifest": (edit, "manifest.json: changed since it was written: digest [0-9a-f]{64}, content"),
    "broken manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: not a manifest"),
    "empty manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: not a manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_file_and_remedy(copied_shards: Path, damage: str) -> None:
    inflict, message = DAMAGES[damage]
    open_split(copied_shards, "train")
    inflict(copied_shards)
    with pytest.raises(UserError, match=message) as error:
        open_split(copied_shards, "train")
    assert f"rm -r {copied_shards} && dvc checkout" in str(error.value)
    assert "`dvc repro -f shard`" in str(error.value)


def test_swapped_shards_of_one_size_are_found(copied_shards: Path) -> None:
    sizes = {entry.name: entry.bytes for entry in read_manifest(copied_shards).shards}
    assert sizes["train/train-000000.tar"] == sizes["train/train-000001.tar"]
    swap(copied_shards)
    with pytest.raises(UserError, match=r"train-000000.tar: damaged or exchanged"):
        open_split(copied_shards, "train")


def test_missing_shards_and_unknown_splits_are_named(tmp_path: Path, digits: Path) -> None:
    with pytest.raises(UserError, match=r"manifest.json: no such file; write the shards with `dvc repro shard`"):
        open_split(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'training'; there are train, val, test"):
        open_split(digits / "shards", "training")


def test_a_manifest_of_another_version_is_refused(copied_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.index.VERSION", 2)
    with pytest.raises(UserError, match="expected version 2, found 1"):
        read_manifest(copied_shards)
