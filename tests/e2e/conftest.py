"""Copies of the project that several tests share, each in a folder with a space."""

from collections.abc import Iterator

import planted
import pytest
from e2e_project import Project, commit, copy_project


@pytest.fixture(scope="session")
def with_data(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with its data in place, committed. Tests train in a `twin` of it."""
    project = copy_project(tmp_path_factory.mktemp("with data"))
    project.run("dvc", "repro", "shard")
    commit(project, "data")
    return project


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project after its first `make repro`, committed, with secrets planted. Tests that change it put it back."""
    project = copy_project(tmp_path_factory.mktemp("a checkout"))
    planted.plant(project.path)
    with planted.ray_folder() as ray:
        printed = project.run("make", "repro", env=planted.environment(ray))
        commit(project, "results")
        yield Project(project.path, printed, ray)
