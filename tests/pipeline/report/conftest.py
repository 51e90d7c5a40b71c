from pathlib import Path

import pytest
from report_project import CONFIG, FAMILIES, Digits, write_project

from pipeline.report import examples
from pipeline.report.page import render_report


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder as a finished `dvc repro` leaves it, for a test to change."""
    monkeypatch.setattr(examples, "open_split", lambda shards, split: Digits())
    write_project(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of such a folder."""
    root = tmp_path_factory.mktemp("finished")
    write_project(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(examples, "open_split", lambda shards, split: Digits())
        return render_report(FAMILIES, CONFIG, root)
