"""Checks of what `ray up` runs and copies, whoever provides the machines: commands, copied files, secrets, sizes."""

import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.cluster.findings import Document, KeyPath, Problem, Problems, items, section, texts
from pipeline.cluster.recipe import ENVIRONMENT, TOKEN
from pipeline.secret import secret_in

HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
SETUPS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
MAKE_TOKEN = "(umask 077 && ray get-auth-token --generate > /dev/null)"

_PINNED = re.compile(r"(?<![\w.])([A-Za-z][\w.-]*)(?:\[[^]]*\])?==([\w.+]+)")
_OPEN = re.compile(r"\b0\.0\.0\.0\b|(?<![\w:])::(/0)?(?![\w:])")
_ASSIGNED = re.compile(  # what in other files is often no secret
    r"(?<!sha256:)\b[0-9a-f]{32,}\b|\b\w*(?:SECRET|PASSWORD|AUTH_TOKEN)\w*=(?!\$)\S+", re.IGNORECASE
)
_SECRET_KEYS = re.compile(r"secret_?access_?key|password|passwd|api_?key|auth_?token$", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"[\w-]*REPLACE_ME")


def launch_problems(doc: Document) -> Problems:
    """All that is the same for every provider."""
    for check in (_sizes, _mounts, _setup, _starts, _dashboard, _shell, versions, secrets, placeholders):
        yield from check(doc)


def commands(doc: Document, *keys: str) -> Iterator[tuple[KeyPath, str]]:
    for key in keys:
        yield from (((key, i), text) for i, text in enumerate(items(doc.values, key)) if isinstance(text, str))


def _sizes(doc: Document) -> Problems:
    if "max_workers" not in doc.values:
        yield Problem(("max_workers",), "missing: Ray would take its default; say how many workers there are at most")
    types = section(doc.values, "available_node_types")
    least = sum(n for name in types if isinstance(n := section(types, name).get("min_workers", 0), int))
    most = doc.values.get("max_workers")
    if isinstance(most, int) and least > most:
        text = f"{most}, but the min_workers of all types come to {least}; raise it, or lower them"
        yield Problem(("max_workers",), text)


def _mounts(doc: Document) -> Problems:
    mounts = section(doc.values, "file_mounts")
    for remote, local in mounts.items():
        source = doc.root / Path(str(local)).expanduser()
        if remote == TOKEN:
            yield from _token_file(("file_mounts", remote), source, str(local))
        elif not source.exists():
            text = f"{local}: no such file; `ray up` copies it, relative to the folder that it is run in"
            yield Problem(("file_mounts", remote), text)
        elif source.is_dir() and source.resolve() == doc.root.resolve():
            text = f"{local}: the whole folder, data and credentials with it; copy the files that a node needs"
            yield Problem(("file_mounts", remote), text)
    if TOKEN not in mounts:
        text = f"no {TOKEN}: the launcher does not carry the token by itself; add `{TOKEN}: {TOKEN}`"
        yield Problem(("file_mounts",), text)
    patterns = doc.values.get("rsync_exclude") or []
    for i, pattern in enumerate(patterns if isinstance(patterns, list) else []):
        if pattern in ("*.pem", "auth_token", "*"):
            text = f"{pattern} would drop a file that the launcher itself copies; anchor it, or leave it out"
            yield Problem(("rsync_exclude", i), text)


def _token_file(at: KeyPath, source: Path, shown: str) -> Problems:
    if not source.exists():
        yield Problem(at, f"{shown}: no such file yet; make it: {MAKE_TOKEN}", todo=True)
    elif stat.S_IMODE(source.stat().st_mode) & 0o077:
        yield Problem(at, f"{shown}: others can read the token; chmod 600 {shown}")


def _setup(doc: Document) -> Problems:
    if not any(f"chmod 600 {TOKEN}" in text for _, text in commands(doc, *SETUPS)):
        yield Problem(("setup_commands",), f"expected `chmod 600 {TOKEN}`, so that no other user of a node reads it")
    for at, text in commands(doc, *SETUPS):
        if re.search(r"\bpip install\b(?!.*\buv==\S+$)", text) and "constraints.txt" not in text:
            yield Problem(at, "installs without constraints.txt; add `-c` with its path")
        if re.search(r"https?://|\.whl\b", text):
            yield Problem(at, "installs from outside the index; name a package, in the version of constraints.txt")


def _starts(doc: Document) -> Problems:
    for key in (HEAD, WORKER):
        found = list(commands(doc, key))
        first = next((i for i, (_, text) in enumerate(found) if "ray start" in text), None)
        if first is None:
            yield Problem((key,), "no `ray start`: Ray would start by its own default, without a token; add it")
            continue
        at, text = found[first]
        if not any("ray stop" in before for _, before in found[:first]):
            yield Problem(at, "no `ray stop` before `ray start`: a second `ray up` would fail; add it")
        exported, _, options = text.partition("ray start")
        for name, value in ENVIRONMENT.items():
            if not re.search(rf"export [^;&|]*\b{name}={value}\b", exported):
                yield Problem(at, f"expected `export {name}={value}` before `ray start`")
        for option in ("--head", "--autoscaling-config=") if key == HEAD else ("--address=$RAY_HEAD_IP:",):
            if option not in options:
                yield Problem(at, f"expected {option} after `ray start`")


def _dashboard(doc: Document) -> Problems:
    for at, text in commands(doc, HEAD, WORKER):
        if at[0] == HEAD and "ray start" in text and "--dashboard-host" not in text:
            yield Problem(at, "expected --dashboard-host=127.0.0.1: jobs are submitted there; reach it through SSH")
        for host in re.findall(r"--dashboard-host[= ](\S+)", text):
            if host not in ("127.0.0.1", "localhost"):
                yield Problem(at, f"the dashboard listens on {host}; expected --dashboard-host=127.0.0.1, through SSH")
        if "--redis-password" in text:
            yield Problem(at, "--redis-password: every user of the node sees it among the processes; use the token")


def _shell(doc: Document) -> Problems:
    found = list(commands(doc, *SETUPS, HEAD, WORKER))
    if _shell_says("".join(f"(\n{text}\n)\n" for _, text in found)):
        for at, text in found:  # which of them
            if said := _shell_says(f"(\n{text}\n)\n"):
                yield Problem(at, f"no valid shell: {said}; correct it")


def _shell_says(script: str) -> str:
    """What bash says of the script's syntax; empty: nothing, or there is no bash here."""
    bash = shutil.which("bash")
    if bash is None:
        return ""
    done = subprocess.run([bash, "-n"], input=script, capture_output=True, text=True, check=False)
    first = next(iter(done.stderr.strip().splitlines()), "a syntax error")
    return re.sub(r"^.*?line \d+: ", "", first) if done.returncode else ""


def versions(doc: Document) -> Problems:
    """Versions that are named and are not those of constraints.txt; and a Ray here that is none of them."""
    import ray

    for at, text in texts(doc.values):
        for name, version in _PINNED.findall(text):
            pinned = doc.pins.get(name.lower())
            if pinned not in (None, version):
                yield Problem(at, f"{name}=={version}, but constraints.txt has {pinned}; name that")
    pinned = doc.pins.get("ray")
    if pinned != ray.__version__:
        what = f"the Ray here is {ray.__version__}, constraints.txt has {pinned}"
        yield Problem((), f"{what}: head and driver must be the same; install with `-c constraints.txt`")
    if not re.fullmatch(r"[\d.]+", torch := doc.pins.get("torch", "")):
        yield Problem((), f"constraints.txt: torch=={torch}: expected one that GPU nodes can install, such as 2.13.0")


def secrets(doc: Document) -> Problems:
    """Secrets, and addresses that let everyone in. What was found is not shown."""
    for at, text in texts(doc.values):
        if kind := secret_in(text) or ("a password or token" if _ASSIGNED.search(text) else None):
            yield Problem(at, f"holds what looks like {kind}: whoever reads this file has it; keep it out")
        if _OPEN.search(text) and "--dashboard-host" not in text:
            yield Problem(at, f"open to all: {_OPEN.search(text)[0]}; name who may come in")  # type: ignore[index]
        if at and text == at[-1] and _SECRET_KEYS.search(text) and text not in (TOKEN,):
            yield Problem(at, f"{text}: whoever reads this file has it; use a role, or a file that is mounted")


def placeholders(doc: Document) -> Problems:
    for at, text in texts(doc.values):
        for name in dict.fromkeys(_PLACEHOLDER.findall(text)):
            yield Problem(at, f"{name}: fill in your own", todo=True)
