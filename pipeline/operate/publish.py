"""publish trials of finished sweeps as DVC experiments, for `dvc exp show`, `diff` and `apply`; trains nothing"""

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.errors import UserError, did_you_mean
from pipeline.progress import say

if TYPE_CHECKING:
    from pipeline.tune.trial import Job
    from pipeline.tune.trials import Sweep


def arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "The stage tune publishes the best tune.publish trials, on the commit that is checked out. After a commit, or "
        "after `dvc exp remove`, this publishes them again. What is there with the same content stays as it is."
    )
    parser.add_argument("--family", metavar="F", help="a name under `families` in params.yaml; all without it")
    parser.add_argument("--all", action="store_true", help="all trials; of those stopped early the parameters alone")


def main(params: Params, args: Namespace) -> None:
    if args.family is not None and args.family not in params.families:
        raise UserError(f"--family {args.family}: no such family{did_you_mean(args.family, params.families)}")
    swept = [family for family in params.families if params.tune.spaces[family]]
    failed = []
    for family in [args.family] if args.family else swept:
        try:
            said = publish_family(params, family, None if args.all else params.tune.publish)
        except UserError as error:
            failed.append(f"{family}: {error}")
        else:
            say(f"tune {family}: {said or 'no trial to publish'}")
    if args.all:
        _let_dvc_read()
    if failed:
        raise UserError("\n".join(failed))


def _let_dvc_read() -> None:
    """DVC keeps what it has read of an experiment: the next `dvc exp show` is quick."""
    say("DVC reads the experiments once, about two seconds each; showing them is quick then")
    subprocess.run([sys.executable, "-m", "dvc", "exp", "show", "--json"], stdout=subprocess.DEVNULL, check=True)


def publish_family(params: Params, family: str, count: int | None) -> str:
    """Publish the best `count` finished trials of a family, or all its trials. What was done, in one line.

    Raises:
        UserError: its sweep is not finished, or the trials cannot be published.
    """
    from pipeline.stages.tune import sweep_of
    from pipeline.train.storage import is_finished
    from pipeline.tune.experiments import published
    from pipeline.tune.search import search

    sweep = sweep_of(params, family)
    unfinished = Unfinished(sweep)
    if not is_finished(sweep.folder):
        raise unfinished.error
    return published(sweep, search(sweep, unfinished), count=count, running=False)


@dataclass(frozen=True)
class Unfinished:
    """A trainer that trains nothing: the trials of a finished sweep answer from their folders."""

    sweep: "Sweep"

    @property
    def error(self) -> UserError:
        place, family = self.sweep.folder.location, self.sweep.family
        return UserError(f"{place}: no finished sweep of these values; run `dvc repro -f -s tune@{family}`")

    def advance(self, jobs: Sequence["Job"], *, what: str) -> None:
        if jobs:
            raise self.error

    def race(self, jobs: Sequence["Job"], *, figure: str, mode: str, what: str) -> dict[str, int]:
        raise self.error
