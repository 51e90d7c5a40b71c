"""Where the cluster is, and the token that it asks for."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError

ADDRESS, DEFAULT = "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


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
        return cls(given, _token())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if token:
        return token
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        mode, token = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(
            f"{path}: no token for the cluster ({error.strerror}); "
            f"copy the cluster's there with mode 600, or name its file in {TOKEN_PATH}"
        ) from None
    if mode & 0o077:
        raise UserError(f"{path}: others on this machine can read the cluster's token; chmod 600 {path}")
    if not token:
        raise UserError(f"{path}: empty; copy the cluster's token there")
    return token
