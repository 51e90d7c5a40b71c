"""check params.yaml, and that dvc.yaml depends on the files of data.source; every command makes the first check"""

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate.deps import check_paths, source_paths


def check_compiler(params: Params) -> None:
    """Raise UserError where torch is to compile and cannot: its linker splits paths at spaces."""
    found = find_spec("torch")
    if params.train.compile != "off" and found and " " in str(found.origin):
        raise UserError(
            f"params.yaml: train.compile: torch cannot link its compiled code in a folder with a space in its name "
            f"({Path(str(found.origin)).parent}); move the checkout, or set it to off"
        )


def main(params: Params, args: Namespace) -> None:
    """Reaching this line means that the whole of params.yaml was read and found right."""
    check_compiler(params)
    if not (wanted := source_paths(params.data)):
        return
    check_paths(wanted)
    deps = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["ingest"]["deps"]
    if missing := [path for path in wanted if path not in deps]:
        raise UserError(
            f"dvc.yaml: the stage ingest does not depend on {', '.join(missing)}, so DVC would not see new files "
            "there; run `python -m pipeline deps`"
        )
