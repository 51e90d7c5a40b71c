"""Proof that what a stranger's file did reached nothing outside the working directory."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from strangers import SECRET

HELPERS = Path(__file__).parents[1] / "pipeline"
sys.path += [str(HELPERS / "data"), str(HELPERS / "report")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a test, with a secret beside it; afterwards there is nothing else."""
    home, secret = tmp_path / "home", tmp_path / "secret"
    home.mkdir()
    secret.write_bytes(SECRET)
    monkeypatch.chdir(home)
    yield home
    assert sorted(os.listdir(tmp_path)) == ["home", "secret"]
    assert secret.read_bytes() == SECRET
