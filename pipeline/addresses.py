"""Addresses that hold a user or password: found where they must not be, and never shown."""

import re

_AUTHORITY = re.compile(r"^[a-z][a-z0-9+.:-]*://([^/?#]*)", re.IGNORECASE)
_PORT = re.compile(r"^(\[[^\]]*\]|[^:]*)(:[0-9]*)?$")


def has_credentials(address: str) -> bool:
    """Whether it names a user before its host; also where a password with a slash in it was not encoded."""
    found = _AUTHORITY.match(address)
    return found is not None and ("@" in found[1] or _PORT.match(found[1]) is None)


def without_credentials(address: str) -> str:
    """The address as it may be shown."""
    if not has_credentials(address):
        return address
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2] if '@' in rest else '...'}"
