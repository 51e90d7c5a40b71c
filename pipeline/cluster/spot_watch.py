"""On a worker of EC2: wait for the notice that the spot instance is taken back, and drain its Ray node.

It is copied to the workers as one file, so it needs nothing but Python: `python spot_watch.py --address HEAD:6379`.
"""

import argparse
import fcntl
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

TOKEN_SECONDS = 21600
LOCK = Path("~/.spot_watch.lock")


class Metadata:
    """The instance metadata service, by version 2 of its protocol: every read needs a token, which expires."""

    def __init__(self, url: str) -> None:
        self._url, self._token = url.rstrip("/"), ""
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # never through a proxy

    def notice(self) -> dict[str, str] | None:
        """`{"action": "terminate", "time": "2026-01-31T12:00:00Z"}`; None: the instance stays.

        Raises:
            OSError: the service does not answer, or refuses a new token too.
            ValueError: what it answers is no notice.
        """
        try:
            return self._notice()
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
        self._token = ""
        return self._notice()

    def _notice(self) -> dict[str, str] | None:
        if not self._token:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            self._token = self._ask("PUT", "/latest/api/token", lifetime)
        try:
            text = self._ask("GET", "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("action"), str):
            raise ValueError(f"not a notice: {text!r}")
        return found

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._url + path, method=method, headers=headers)
        with self._open(request, timeout=2) as answer:
            return str(answer.read(65536).decode())


def node_ids(address: str, processes: Path = Path("/proc")) -> list[str]:
    """The Ray nodes of this machine that belong to the cluster at `address`, in hex, from their raylets' arguments."""
    found = []
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if f"--gcs-address={address}" in arguments:
            found += [a.removeprefix("--node_id=") for a in arguments if a.startswith("--node_id=")]
    return sorted(set(found))


def drain(address: str, node: str, notice: dict[str, str], seconds: int) -> bool:
    """Whether Ray took it."""
    message = f"EC2 takes this spot instance back: {notice['action']} at {notice.get('time', 'an unknown time')}"
    command = ["ray", "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", message]
    try:
        done = subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"ray drain-node: {error}")
        return False
    return done.returncode == 0


def remaining(notice: dict[str, str], most: int) -> int:
    """Seconds until the instance goes, from 1 to `most`; `most` where the notice does not say when."""
    try:
        end = datetime.fromisoformat(notice["time"].replace("Z", "+00:00"))
    except (KeyError, ValueError):
        return most
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    return max(1, min(most, int((end - datetime.now(UTC)).total_seconds())))


def watch(metadata: Metadata, every: float) -> dict[str, str]:
    """The notice, as soon as there is one. Says once where the service does not answer, and goes on asking."""
    silent = False
    while True:
        try:
            notice = metadata.notice()
        except (OSError, ValueError) as error:
            if not silent:
                say(f"the instance metadata service does not answer as it should: {error}; asking on")
            silent = True
        else:
            silent = False
            if notice is not None:
                return notice
        time.sleep(every)


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True, metavar="HEAD:PORT", help="of the cluster")
    parser.add_argument("--seconds", type=int, default=120, help="from the notice to the end at most")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two questions")
    parser.add_argument("--imds", default="http://169.254.169.254", metavar="URL", help="of the metadata service")
    args = parser.parse_args(argv)
    with LOCK.expanduser().open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another one watches here already")
            return 0
        return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    say(f"watching for {args.imds} to take this instance back")
    notice = watch(Metadata(args.imds), args.every)
    say(f"notice: {json.dumps(notice)}")
    end = time.monotonic() + remaining(notice, args.seconds)
    while (left := math.ceil(end - time.monotonic())) > 0:
        nodes = node_ids(args.address)
        if nodes and all([drain(args.address, node, notice, left) for node in nodes]):
            say(f"drained {', '.join(nodes)} with {left} s left")
            return 0
        say(f"no Ray node of {args.address} runs here; trying again" if not nodes else "not drained; trying again")
        time.sleep(min(1.0, args.every))
    say("the time is over")
    return 1


if __name__ == "__main__":
    sys.exit(main())
