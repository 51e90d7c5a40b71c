"""One copy of the project for all of these tests, in a folder with a space, in which `make repro` has run once."""

import pytest
from e2e_project import Project, commit, copy_project


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `make repro`, committed. Tests that change it put it back."""
    project = copy_project(tmp_path_factory.mktemp("a checkout"))
    printed = project.run("make", "repro")
    commit(project, "results")
    return Project(project.path, printed)
