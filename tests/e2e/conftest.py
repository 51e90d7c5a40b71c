"""One copy of the project for all of these tests, in a folder with a space, in which `make repro` has run once."""

from collections.abc import Iterator

import planted
import pytest
from e2e_project import Project, commit, copy_project


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project after its first `make repro`, committed, with secrets planted. Tests that change it put it back."""
    project = copy_project(tmp_path_factory.mktemp("a checkout"))
    planted.plant(project.path)
    with planted.ray_folder() as ray:
        printed = project.run("make", "repro", env=planted.environment(ray))
        commit(project, "results")
        yield Project(project.path, printed, ray)
