"""Where the cluster is, and the token that it asks for."""

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

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
        """Raises UserError where there is no token, others can read it, or it would travel in clear text."""
        given = (address or os.environ.get(ADDRESS) or DEFAULT).rstrip("/")
        parts = urlsplit(given)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.path:
            raise UserError(
                f"--address {parts.hostname or given}: expected http://HOST:PORT of the cluster's dashboard"
            )
        if parts.scheme == "http" and not _is_loopback(parts.hostname) and not plain_http:
            raise UserError(
                f"--address {given}: the token would travel in clear text; tunnel the port "
                f"(ssh -N -L 8265:localhost:{parts.port or 80} {parts.hostname}) and leave --address out, "
                "use https, or allow it with --plain-http"
            )
        return cls(given, find_token())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
