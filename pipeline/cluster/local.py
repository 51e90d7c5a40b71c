"""Checks of a cluster of given machines (`provider: local`)."""

import re
from pathlib import Path

from pipeline.cluster.findings import Document, Problem, Problems, items, section
from pipeline.cluster.launched import HEAD, commands
from pipeline.errors import did_you_mean

KEYS = {"type", "head_ip", "worker_ips", "external_head_ip"}
NOT_HERE = ("available_node_types", "head_node", "worker_nodes", "head_node_type")


def local_problems(doc: Document) -> Problems:
    for check in (_provider, _login, _autoscaler):
        yield from check(doc)


def _provider(doc: Document) -> Problems:
    provider, workers = section(doc.values, "provider"), items(doc.values, "provider", "worker_ips")
    for key in provider:
        if key == "coordinator_address":
            yield Problem(("provider", key), "a coordinator lets in whoever reaches it; name head_ip and worker_ips")
        elif key not in KEYS:
            yield Problem(("provider", key), f"unknown key{did_you_mean(str(key), KEYS)}")
    for key in ("head_ip", "worker_ips"):
        if not provider.get(key):
            yield Problem(("provider", key), "missing: name the machines")
    for i, address in enumerate(workers):
        if address == provider.get("head_ip") or address in workers[:i]:
            yield Problem(("provider", "worker_ips", i), f"{address} is named twice; each machine is one node")
    most = doc.values.get("max_workers")
    if isinstance(most, int) and workers and most != len(workers):
        yield Problem(("max_workers",), f"{most}, but provider.worker_ips names {len(workers)}; make them the same")
    for key in NOT_HERE:
        if key in doc.values:
            yield Problem((key,), "given machines have no types; remove it")


def _login(doc: Document) -> Problems:
    auth = section(doc.values, "auth")
    for key in ("ssh_user", "ssh_private_key"):
        if not auth.get(key):
            yield Problem(("auth", key), "missing: the head logs in to the workers with it")
    key = str(auth.get("ssh_private_key", ""))
    if key and not (doc.root / Path(key).expanduser()).exists():
        text = f"{key}: no such file yet; make it: ssh-keygen -t ed25519 -f {key}"
        yield Problem(("auth", "ssh_private_key"), text, todo=True)


def _autoscaler(doc: Document) -> Problems:
    for at, text in commands(doc, HEAD):
        if "ray start" not in text:
            continue
        if not re.search(r"export [^;&|]*\bRAY_enable_autoscaler_v2=0\b", text):
            export = "export RAY_enable_autoscaler_v2=0"
            yield Problem(at, f"expected `{export}` before `ray start`: else N addresses start N-1 workers")
        if "--num-cpus=" not in text:
            yield Problem(at, "expected --num-cpus=0 (or how many the head may use), so that no training lands on it")
