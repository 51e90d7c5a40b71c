"""look at this machine, the project and the cluster, and say of each thing how it is and what would mend it"""

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.doctor.finding import Finding

EPILOG = """\
examples:
  python -m pipeline doctor
  python -m pipeline doctor --ray
  python -m pipeline doctor --address http://127.0.0.1:8265
  python -m pipeline submit --wait -- python -m pipeline doctor

Each line is ok, a warning or broken, then what, how it is, and what would mend it. Exit code 1: something is broken."""


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, RawDescriptionHelpFormatter
    parser.add_argument(
        "--address", metavar="ADDRESS", help="of a Ray cluster, whose every node is asked; compute.address without it"
    )
    parser.add_argument("--plain-http", action="store_true", help="let the token travel in clear text over a network")
    parser.add_argument("--ray", action="store_true", help="without an address: see whether Ray starts here")
    parser.add_argument("--json", action="store_true", help="a list of {level, what, told, remedy}")


def main(params: Params, args: Namespace) -> None:
    from pipeline.doctor.checks import diagnose

    address = args.address or params.compute.address
    found = diagnose(Path(), params, address, start_ray=args.ray, plain_http=args.plain_http)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        print("\n".join(map(str, found)))
    _judge(found)


def _judge(found: "Sequence[Finding]") -> None:
    """Raise UserError where something is broken."""
    names = list(dict.fromkeys(finding.what for finding in found if finding.level == "broken"))
    if names:
        raise UserError(
            f"{len(names)} of {len(found)} broken: {', '.join(names)}; each line above ends with its remedy"
        )
