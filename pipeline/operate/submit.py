"""run a command on a cluster, in a clone of a commit; results come home through Git and DVC"""

import json
import os
import shlex
from argparse import REMAINDER, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import COMPUTE, Params, load_params
from pipeline.errors import UserError
from pipeline.progress import say

if TYPE_CHECKING:
    from pipeline.jobs.cluster import Cluster
    from pipeline.jobs.spec import Job

EPILOG = """\
examples:
  python -m pipeline submit --wait -- dvc exp run
  python -m pipeline submit --compute workers=4 storage=s3://BUCKET/vae-pipeline/runs cache=/mnt/cache/shards \\
    -- dvc exp run -S train.epochs=20
  python -m pipeline submit --ref v1.2 --name again -- dvc repro

On the head, the job clones origin, fetches what is needed from the DVC remote, runs COMMAND, pushes what was made to
the DVC remote and an experiment to origin. The same commit, command, settings and changes are the same job: while it
runs, or once it has succeeded, submitting it again does nothing; one that failed goes on from where it was.
--wait ends with the exit code of COMMAND, or of the stage that failed; Ctrl-C leaves the job running.

The cluster's token: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token (mode 600)."""


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [options] -- COMMAND …"
    parser.add_argument("--ref", metavar="REV", help="the commit; what is checked out without it")
    parser.add_argument("--wait", action="store_true", help="show the log until the job is over")
    parser.add_argument("--dirty", action="store_true", help="carry changes that are not committed, as a patch")
    parser.add_argument("--name", metavar="EXP", help="of the experiment; the job's id without it")
    parser.add_argument(
        "--compute", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="keys of `compute` in params.yaml, as they are on the cluster",
    )  # fmt: skip
    parser.add_argument("--origin", metavar="URL", help="the repository as the head reaches it; origin's without it")
    parser.add_argument("--remote", metavar="NAME", help="the DVC remote for the results; the default one without it")
    add_address(parser)
    parser.add_argument("run", metavar="COMMAND", nargs=REMAINDER, help="for instance: dvc exp run")


def add_address(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="URL", help="of the cluster's dashboard; RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265 "
        "without it",
    )  # fmt: skip
    parser.add_argument("--plain-http", action="store_true", help="let the token travel in clear text over a network")


def main(params: Params, args: Namespace) -> None:
    from pipeline.jobs.access import Access
    from pipeline.jobs.command import Command
    from pipeline.jobs.source import Source
    from pipeline.jobs.spec import Job

    command = Command.of(args.run[1:] if args.run[:1] == ["--"] else args.run)
    compute = compute_of(args.compute)
    access = Access.of(args.address, plain_http=args.plain_http)
    source = Source.of(Path.cwd(), ref=args.ref, dirty=args.dirty, origin=args.origin, remote=args.remote)
    job = Job.of(source, command, compute, args.name)

    from pipeline.jobs.cluster import Cluster

    submit(Cluster(access), job, wait=args.wait)


def compute_of(given: Sequence[str]) -> dict[str, Any]:
    """The section `compute` as it is for the job, checked against params.yaml.

    Raises:
        UserError: a word is not KEY=VALUE, or a key or value is wrong.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    compute: dict[str, Any] = {"address": "auto"}
    for word in given:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--compute {word}: expected KEY=VALUE; COMMAND comes after `--`")
        try:
            compute[key.removeprefix("compute.")] = value = YAML(typ="safe").load(text)
            json.dumps(value)
        except YAMLError:
            raise UserError(f"--compute {word}: not a value of YAML; quote it") from None
        except TypeError:  # a date, for one
            found, quoted = type(value).__name__, shlex.quote(f'{key}="{text}"')
            raise UserError(f"--compute {word}: a {found} to YAML; quote it: {quoted}") from None
    with _compute(compute):
        try:
            load_params()
        except UserError as error:
            raise UserError(str(error).replace(f"{COMPUTE}: compute.", "--compute ")) from None
    return compute


@contextmanager
def _compute(values: dict[str, Any]) -> Iterator[None]:
    before = os.environ.get(COMPUTE)
    os.environ[COMPUTE] = json.dumps(values)
    try:
        yield
    finally:
        if before is None:
            del os.environ[COMPUTE]
        else:
            os.environ[COMPUTE] = before


def submit(cluster: "Cluster", job: "Job", *, wait: bool) -> None:
    """Send it, unless it runs or has succeeded; with `wait`, follow it."""
    from pipeline.jobs.following import follow, is_home, tell_end

    record, skip = cluster.record(job.id), 0
    if record is not None and record.status in {"FAILED", "STOPPED"}:
        ended = "was stopped" if record.status == "STOPPED" else f"failed with exit code {record.code}"
        say(f"{job.id} {ended} before; it is started again")
        skip = len(cluster.log(job.id))
        cluster.forget(job.id)
        record = None
    if record is None:
        job.source.check_name(job.named)
        sent = cluster.send(job)
        say(f"{job.id} submitted to {cluster.access.address}" if sent else f"{job.id} runs already")
    elif record.is_over:
        say(f"{job.id} has succeeded already; nothing was submitted")
        if not wait:
            tell_end(record, pushed=is_home(cluster.log(job.id)))
            return
    else:
        say(f"{job.id} runs already; nothing was submitted")
    if wait:
        follow(cluster, job.id, skip=skip)
    else:
        say(f"follow it: python -m pipeline jobs logs -f{cluster.option()} {job.id}")
