"""A run of the loop is the same on one, two and four ranks, also where it goes on with another number of them."""

import json
import shutil
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from digits_shards import write_digits
from loop_work import BROKEN_AT, FAMILIES
from ranks import alone, together
from safetensors.torch import load

STEPS, LAST_ROWS = 10, 11  # of an epoch: the last batch divides by neither 2 nor 4
WORLDS = (1, 2, 4)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-learn's digits."""
    return write_digits(tmp_path_factory.mktemp("digits") / "data")


Found = Mapping[int, tuple[Path, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def found(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The directory and the ranks' results for each number of ranks; one and four go on with a run of two."""
    made: dict[int, tuple[Path, list[dict[str, Any]]]] = {}
    for world in (2, 1, 4):
        directory = tmp_path_factory.mktemp(f"ranks-{world}")
        (directory / "shards").symlink_to(shards)
        for family in FAMILIES if world != 2 else ():
            shutil.copytree(made[2][0] / f"{family}-left", directory / f"{family}-broken")
        results = [alone("loop_work", directory)] if world == 1 else together("loop_work", world, directory)
        made[world] = directory, results
    return made


def steps_of(results: list[dict[str, Any]], family: str, name: str = "seen") -> list[list[int]]:
    """The pixels' sums of each step's global batch, in its order."""
    steps = []
    for parts in zip_longest(*(result[family][name] for result in results)):
        rows = [row for part in parts for row in zip(part["places"], part["pixels"], strict=True)]
        assert [place for place, _ in sorted(rows)] == list(range(len(rows))), "each row on one rank"
        steps.append([pixels for _, pixels in sorted(rows)])
    return steps


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_checkpoint(folder: Path) -> Path:
    (path,) = (folder / "checkpoints").glob(f"step-{2 * STEPS:09d}-*")
    return path


def assert_alike(folder: Path, expected: Path) -> None:
    """The same rows of figures and the same weights but for rounding, which a run carries on."""
    for one, other in zip(rows_of(folder), rows_of(expected), strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=2e-3)
    left, right = (load(last_checkpoint(path).read_bytes()) for path in (folder, expected))
    assert left.keys() == right.keys()
    for name in (name for name in left if name.startswith("model.")):
        difference = (left[name].double() - right[name].double()).norm()
        assert difference <= 0.02 * max(right[name].double().norm().item(), 1e-3), name


@every_family
def test_each_step_sees_the_same_rows_on_any_number_of_ranks(family: str, found: Found) -> None:
    expected = steps_of(found[1][1], family)
    assert [len(step) for step in expected] == ([128] * (STEPS - 1) + [LAST_ROWS]) * 2
    for world in WORLDS[1:]:
        assert steps_of(found[world][1], family) == expected


@pytest.mark.parametrize("world", WORLDS[1:])
@every_family
def test_figures_and_weights_are_those_of_one_process(family: str, world: int, found: Found) -> None:
    assert_alike(found[world][0] / f"{family}-whole", found[1][0] / f"{family}-whole")


@pytest.mark.parametrize("world", [1, 4])
@every_family
def test_a_run_of_two_ranks_goes_on_with_another_number(family: str, world: int, found: Found) -> None:
    """With the rows after its last checkpoint, to the same figures and weights."""
    directory, results = found[world]
    whole = steps_of(found[1][1], family)
    assert steps_of(results, family, "seen_after") == whole[BROKEN_AT - 3 :]
    assert_alike(directory / f"{family}-broken", found[1][0] / f"{family}-whole")


@pytest.mark.parametrize("world", WORLDS)
@every_family
def test_a_run_that_was_broken_off_ends_with_the_same_bytes_on_as_many_ranks(
    family: str, world: int, found: Found
) -> None:
    whole, own = (found[world][0] / f"{family}-{which}" for which in ("whole", "own"))
    assert rows_of(own) == rows_of(whole)
    assert last_checkpoint(own).read_bytes() == last_checkpoint(whole).read_bytes()


@pytest.mark.parametrize("world", WORLDS)
@every_family
def test_speed_tells_of_communication_between_ranks_alone(family: str, world: int, found: Found) -> None:
    lines = (found[world][0] / f"{family}-whole" / "speed.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["samples"] for row in rows_of(found[world][0] / f"{family}-whole")] == [1163, 1163, 2326, 2326]
    assert [row["workers"] for row in rows] == [world] * 2
    for row in rows:
        assert (row["communication"] > 0) is (world > 1)
        shares = [row[name] for name in ("data", "compute", "communication", "checkpoint", "evaluation")]
        assert sum(shares) == pytest.approx(1)
