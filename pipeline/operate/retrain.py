"""look for new data, train on them, and promote the new model where it beats the champion; made for a schedule"""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from pipeline.config import Params
from pipeline.errors import UserError, did_you_mean

EPILOG = """\
New data are those in data.source.path and data.append that dvc.lock does not have. They are ingested and compared with
the data before (retrain.drift); then a DVC experiment trains on them, and the new model and the registry's champion are
measured on the same current test split. The section `retrain` of params.yaml decides. All of it is done in a clone:
until a model is promoted nothing here changes but the list of experiments, whatever ends the command, and the same
command goes on where it stopped.

exit codes:
   0  promoted (with --branch: proposed)
  10  the champion is kept
  11  nothing new
  12  the new data are refused
   7  another retraining is running
   others as of all commands: it failed, and everything is as it was

examples:
  python -m pipeline retrain --dry-run
  python -m pipeline retrain --push
  python -m pipeline retrain --branch --wait 3600"""


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--family", metavar="F", nargs="+", help="names under `families` in params.yaml; all without it")
    add("--wait", metavar="SECONDS", type=float, default=0.0, help="how long, for another retraining to end")
    add("--dry-run", action="store_true", help="stop after the decision, and change nothing")
    add("--force", action="store_true", help="go on where there is nothing new")
    add("--out", metavar="DIR", type=Path, help="for decision.json and decision.md; else below .runs/retrain")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--push", action="store_true", help="branch, tags and experiment to origin, its files to the DVC remote"
    )
    where.add_argument(
        "--branch", metavar="NAME", nargs="?", const="", help="the same with a branch to review, and no tags"
    )


def main(params: Params, args: Namespace) -> None:
    from pipeline.retrain.night import PROMOTED, Options, retrain

    options = Options(
        families=_families(params, args.family),
        dry_run=args.dry_run,
        force=args.force,
        push=args.push,
        branch=args.branch,
        out=args.out,
        wait_s=args.wait,
    )
    code = retrain(Path.cwd().resolve(), params, options)
    if code != PROMOTED:
        sys.exit(code)


def _families(params: Params, given: list[str] | None) -> tuple[str, ...]:
    for family in given or ():
        if family not in params.families:
            raise UserError(f"--family {family}: no such family{did_you_mean(family, params.families)}")
    return tuple(family for family in params.families if given is None or family in given)
