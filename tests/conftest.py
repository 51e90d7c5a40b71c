"""How the tests are dealt to the two processes that `make test` runs them in."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, and so do all tests of the one reproduced project, which is costly to make."""
    for item in items:
        shares_project = "reproduced" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("reproduced project" if shares_project else str(item.path)))
