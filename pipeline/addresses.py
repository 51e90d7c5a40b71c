"""Addresses: a user or password in one is found where it must not be, and never shown; whether one is listened at."""

import re
import socket

_AUTHORITY = re.compile(r"^[a-z][a-z0-9+.:-]*://([^/?#]*)", re.IGNORECASE)
_PORT = re.compile(r"^(\[[^\]]*\]|[^:]*)(:[0-9]*)?$")
_USER = re.compile(r"\b(?!ssh://[^/@\s:]+@)(\w+://)[^/@\s]+@")  # in any text; one of SSH alone is no secret


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


def without_passwords(text: str) -> str:
    """The text, and the addresses in it without user and password."""
    return _USER.sub(r"\1", text)


def knock(address: str, timeout_s: float) -> None:
    """Find out at once whether something listens there: Ray itself would go on trying for minutes.

    Without a port, as in `auto`, there is nothing to knock at.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
