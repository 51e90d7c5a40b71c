"""How the tests are dealt to the two processes that `make test` runs them in, and how properties are tried."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

COSTLY = ("reproduced", "with_data", "ray_cluster")  # fixtures that one process alone should make


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadScopeScheduling  # not there where vae_core is tested alone

    class ByFile(LoadScopeScheduling):
        """The tests of a file stay together, and so do all files that use a costly fixture."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return next((fixture for fixture in COSTLY if fixture in _text(self.config.rootpath / file)), file)

    return ByFile(config, log)


def pytest_configure() -> None:
    """Time is no part of a property: a busy machine makes no example wrong."""
    with suppress(ImportError):  # not there where vae_core is tested alone
        from hypothesis import settings

        settings.register_profile("any machine", deadline=None)
        settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that neither process waits for the other at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)
