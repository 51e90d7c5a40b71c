"""How the tests are dealt to the two processes that `make test` runs them in."""

import pytest

COSTLY = ("reproduced", "ray_cluster")  # fixtures that one process alone should make


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a costly fixture stay together; else those of a file."""
    for item in items:
        shared = [name for name in COSTLY if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else str(item.path)))
