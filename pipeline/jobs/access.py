"""Where the cluster is, and the token that it asks for."""

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.addresses import without_credentials
from pipeline.errors import UserError
from pipeline.token import find_token

ADDRESS, DEFAULT = "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Access:
    """An address, and the token for it, which is in no representation of this."""

    address: str
    token: str = field(repr=False)

    @classmethod
    def of(cls, address: str | None, *, plain_http: bool = False) -> "Access":
        """Raises UserError: no address; no token, one that others can read, or one that would travel in clear text."""
        given = (address or os.environ.get(ADDRESS) or DEFAULT).rstrip("/")
        scheme, host, port = _parts(given)
        if scheme == "http" and not _is_loopback(host) and not plain_http:
            raise UserError(
                f"--address {given}: the token would travel in clear text; tunnel the port "
                f"(ssh -N -L 8265:localhost:{port} {host}) and leave --address out, "
                "use https, or allow it with --plain-http"
            )
        return cls(given, find_token())


def _parts(given: str) -> tuple[str, str, int]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:  # a port that is no number, a bracket that is not closed
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.path:
        shown = without_credentials(given) if "@" in given else given
        raise UserError(f"--address {shown}: expected http://HOST:PORT of the cluster's dashboard")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
