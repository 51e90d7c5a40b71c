"""What the tests of hostile inputs share: bounds of memory and time, a secret beside the data, a payload."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

SECRET = b"the content of a file that is not part of the data"


@contextmanager
def bounded(megabytes: int = 200, seconds: float = 20) -> Iterator[None]:
    """A block that may take so many megabytes more than there were in use, and so many seconds of the processor."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
    before, start = _memory("VmRSS"), time.process_time()
    yield
    assert time.process_time() - start < seconds
    assert _memory("VmHWM") - before < megabytes


def _memory(name: str) -> int:
    """A figure of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


def small_params(**data: Any) -> str:
    """The project's params.yaml with one family, which is read in a moment; `data` replaces keys of that section."""
    values = YAML(typ="safe").load(Path(__file__).parents[2] / "params.yaml")
    values["families"], values["models"] = ["vae"], {"vae": values["models"]["vae"]}
    values["tune"]["spaces"] = {"vae": {}}
    values["data"] |= data
    return json.dumps(values, indent=1)
