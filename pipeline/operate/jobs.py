"""list, follow and stop the jobs of a cluster"""

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate.submit import add_address

if TYPE_CHECKING:
    from pipeline.jobs.cluster import Cluster, Record

EXAMPLES = """\
examples:
  python -m pipeline jobs ls
  python -m pipeline jobs logs -f exp-3f2a
  python -m pipeline jobs stop exp-3f2a

ID is a job's id, or the beginning of it where no other job begins so; the newest job without one."""
TITLES = ("id", "status", "exit", "started", "took", "command")


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("ls", help="a line a job, the newest first")
    add.set_defaults(do=_ls)
    add_address(add)
    add = actions.add_parser("logs", help="what a job has printed")
    add.add_argument("id", metavar="ID", nargs="?")
    add.add_argument("-f", "--follow", action="store_true", help="until it is over; ends with its exit code")
    add.set_defaults(do=_logs)
    add_address(add)
    add = actions.add_parser("stop", help="end a job; what it did is kept, the same submission goes on from there")
    add.add_argument("id", metavar="ID", nargs="?", help="the only one that runs, without it")
    add.set_defaults(do=_stop)
    add_address(add)


def main(params: Params, args: Namespace) -> None:
    from pipeline.jobs.access import Access
    from pipeline.jobs.cluster import Cluster

    args.do(Cluster(Access.of(args.address, plain_http=args.plain_http)), args)


def _ls(cluster: "Cluster", args: Namespace) -> None:
    records = cluster.records()
    for line in table(records, time.time()) if records else [f"{cluster.access.address}: no jobs"]:
        print(line)


def table(records: "Sequence[Record]", now: float) -> Iterator[str]:
    """A line a job, in columns; `now` in seconds of the epoch."""
    rows = [TITLES, *(_row(record, now) for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(TITLES))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(record: "Record", now: float) -> tuple[str, ...]:
    started = "" if record.started is None else datetime.fromtimestamp(record.started).strftime("%Y-%m-%d %H:%M:%S")
    took = "" if record.started is None else _duration((record.ended or now) - record.started)
    code = "" if record.code is None else str(record.code)
    return record.id, record.status.lower(), code, started, took, record.command


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def _logs(cluster: "Cluster", args: Namespace) -> None:
    from pipeline.jobs.cluster import chosen
    from pipeline.jobs.following import follow

    records = cluster.records()
    if not records:
        raise UserError(f"{cluster.access.address}: no jobs")
    id = chosen(records, args.id).id if args.id is not None else records[0].id
    if args.follow:
        follow(cluster, id)
    else:
        print(cluster.log(id), end="")


def _stop(cluster: "Cluster", args: Namespace) -> None:
    from pipeline.jobs.cluster import chosen

    records = cluster.records()
    if args.id is not None:
        record = chosen(records, args.id)
    else:
        running = [record for record in records if not record.is_over]
        if len(running) != 1:
            told = ", ".join(record.id for record in running) or "none"
            raise UserError(f"jobs stop: name one of those that run ({told})")
        (record,) = running
    if record.is_over:
        raise UserError(f"{record.id}: {record.status.lower()} already, so there is nothing to stop")
    print(f"{record.id} {cluster.stop(record.id).status.lower()}; the same submission goes on from there")
