"""check params.yaml, and that dvc.yaml depends on the files of data.source; every command makes the first check"""

from argparse import Namespace
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate.deps import check_paths, source_paths


def main(params: Params, args: Namespace) -> None:
    """Reaching this line means that the whole of params.yaml was read and found right."""
    if not (wanted := source_paths(params.data)):
        return
    check_paths(wanted)
    deps = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["ingest"]["deps"]
    if missing := [path for path in wanted if path not in deps]:
        raise UserError(
            f"dvc.yaml: the stage ingest does not depend on {', '.join(missing)}, so DVC would not see new files "
            "there; run `python -m pipeline deps`"
        )
