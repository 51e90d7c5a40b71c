"""The gallery, from shards as the pipeline writes them."""

from pathlib import Path

import numpy as np
import pytest
from report_project import CONFIG, FAMILIES, Digits, write_project

from pipeline import files
from pipeline.data.config import DataConfig, PublishedSource, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.loader import open_split
from pipeline.data.shards import write_here
from pipeline.data.sources.digits import open_digits
from pipeline.errors import UserError
from pipeline.report import examples
from pipeline.report.examples import read_examples
from pipeline.report.page import render_report

DATA = DataConfig(
    source=PublishedSource(kind="digits"), validation_fraction=0.1, test_fraction=0.1, max_bad_fraction=0.0
)
CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_project(root)
    data = root / "data"
    prepare([open_digits(None)], DATA, data)
    write_here(data, ShardConfig(seed=0, shard_bytes=1 << 20))
    return root


def test_examples_are_the_first_rows_of_each_class(project: Path) -> None:
    found = read_examples(project, CLASSES, 4)
    split = open_split(project / "data/shards", "train")
    labels = split.labels(np.arange(len(split)))
    assert found.names == CLASSES
    assert found.rows == np.bincount(labels).tolist()
    for label, images in enumerate(found.images):
        assert np.array_equal(images, split.images(np.flatnonzero(labels == label)[:4]))


def test_page_is_rendered_from_real_data(project: Path) -> None:
    html = render_report(FAMILIES, CONFIG, project)
    assert files.read_json(project / "data/dataset.json")["digest"] in html
    assert html == render_report(FAMILIES, CONFIG, project)


def test_missing_shards_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data/shards.*dvc repro"):
        read_examples(tmp_path, CLASSES, 4)


def test_data_without_labels_has_one_class_without_a_name(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(Digits, "labels", lambda self, rows: None)
    found = read_examples(root, [], 5)
    assert [len(images) for images in found.images] == [5]
    assert found.names == [""]
    assert "Training images, one row a class" not in render_report(FAMILIES, CONFIG, root)


def test_only_the_first_of_many_classes_are_shown(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(examples, "SHOWN_CLASSES", 3)
    assert read_examples(root, CLASSES, 2).names == CLASSES[:3]
