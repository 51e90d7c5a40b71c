"""What looks like a secret, and must not be in a file that others read, nor leave this machine with a job."""

import re
from pathlib import PurePosixPath

_KINDS = {
    "an AWS access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?i)aws_?secret_?access_?key[\"']?\s*[=:]\s*\S{16,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a token of GitHub's": r"\b(gh[pousr]_\w{30,}|github_pat_\w{30,})",
    "a password in an address": r"\w+://[^/@\s:]+:[^/@\s]+@",
    "a token of Ray's": r"RAY_AUTH_TOKEN\s*[=:]\s*(?![\"']?\$)\S+",
}


def secret_in(text: str) -> str | None:
    """Which kind of secret a text seems to hold; None: none."""
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, text)), None)


def is_secret_file(name: str) -> bool:
    """Whether files of this name hold secrets by convention."""
    path = PurePosixPath(name)
    own = path.name in {".env", "auth_token", "id_rsa", "id_ed25519"} or path.name.startswith(".env.")
    return own or path.parts[-2:] == (".dvc", "config.local")
