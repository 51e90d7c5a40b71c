"""One cluster for all tests of this folder. Without root, namespaces or sshd they are skipped, with the reason."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "e2e"), str(Path(__file__).parents[1])]

from machines import obstacle  # noqa: E402
from rig import Rig, raised  # noqa: E402


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    with raised(tmp_path_factory.mktemp("rig")) as made:
        yield made
