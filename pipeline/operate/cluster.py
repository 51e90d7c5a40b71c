"""write the files that describe a Ray cluster, and check one before `ray up`"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Params

EXAMPLES = """\
examples:
  python -m pipeline cluster check
  python -m pipeline cluster check deploy/cluster-local.yaml
  python -m pipeline cluster render
  python -m pipeline cluster render --provider local --head 10.0.0.1 --workers 10.0.0.2,10.0.0.3 --ssh-user me"""

_RENDER = (
    "Without --provider, writes the files that are committed: cluster.yaml (AWS), deploy/cluster-local.yaml (given "
    "machines), deploy/rayjob.yaml and deploy/raycronjob.yaml (Kubernetes) and deploy/aws/ (policies). With it, prints "
    "one file, or writes it to --out. A file that is there and differs, such as one that you have filled in, stays "
    "without --force."
)
_CHECK = (
    "Ray's own validation and what it misses: keys of the provider, EC2's model of a launch, files that are not there, "
    "versions other than those of constraints.txt, insecure values. KubeRay's RayJob and RayCronJob, too. A line a "
    "mistake, exit 1; what is still to be filled in is a warning. Nothing is asked over the network."
)


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("render", help="write the files, or one for given machines", description=_RENDER)
    add.add_argument("--provider", choices=["local"], help="given machines, with the options below")
    add.add_argument("--out", type=Path, metavar="FILE", help="write there; without it, print")
    add.add_argument("--force", action="store_true", help="write over files that differ too")
    add.add_argument("--name", metavar="N", help="of the cluster; vae-pipeline without it")
    add.add_argument("--head", metavar="ADDRESS", help="of the machine that leads")
    add.add_argument("--workers", metavar="ADDRESS,...", type=_list, help="of the machines that train")
    add.add_argument("--ssh-user", metavar="USER", help="who logs in; you, without it")
    add.add_argument("--ssh-key", metavar="FILE", help="private key, without passphrase; ~/.ssh/id_ed25519 without it")
    add.add_argument("--token", metavar="FILE", help="the cluster's token, here; ~/.ray/auth_token without it")
    add.add_argument("--venv", metavar="FOLDER", help="environment that all machines have; nothing is installed then")
    add.add_argument("--head-cpus", type=int, metavar="N", help="for work on the head; none without it")
    add.add_argument("--worker-cpus", type=int, metavar="N", help="for work on each worker; all without it")
    add.add_argument("--object-store-mib", type=int, metavar="N", help="of each node; Ray's default without it")
    add.set_defaults(do=_render)
    add = actions.add_parser("check", help="say all that is wrong with a file", description=_CHECK)
    add.add_argument("file", type=Path, nargs="?", default=Path("cluster.yaml"), metavar="FILE", help="cluster.yaml")
    add.add_argument("--strict", action="store_true", help="exit 1 for what is still to be filled in or made, too")
    add.set_defaults(do=_check)


def main(params: Params, args: Namespace) -> None:
    args.do(args)


def _render(args: Namespace) -> None:
    from pipeline.cluster.given import given_machines, refuse_options
    from pipeline.cluster.recipe import read_versions
    from pipeline.cluster.render import committed, local_yaml
    from pipeline.progress import say

    if args.provider is None:
        refuse_options(args)
        _write(committed(), force=args.force)
        return
    text = local_yaml(given_machines(args), read_versions())
    if args.out is None:
        print(text, end="")
    else:
        _write({args.out: text}, force=args.force)
        say(f"next: ray up {args.out}")


def _write(texts: Mapping[Path, str], *, force: bool) -> None:
    """All of them or, without `force` where one would replace what differs, none."""
    from pipeline.errors import UserError
    from pipeline.files import write_text
    from pipeline.progress import say

    differing = [str(path) for path, text in texts.items() if path.is_file() and path.read_bytes() != text.encode()]
    if differing and not force:
        raise UserError(
            f"{', '.join(differing)}: there, and not what would be written, so nothing was; "
            "keep what you have filled in, or write over it with --force"
        )
    for path, text in texts.items():
        write_text(path, text)
        say(f"{path}: written")


def _check(args: Namespace) -> None:
    from pipeline.cluster.check import check
    from pipeline.errors import UserError
    from pipeline.progress import say

    report = check(args.file)
    wrong = report.wrong + (report.todo if args.strict else ())
    for line in () if args.strict else report.todo:
        say(f"warning: {line}")
    if wrong:
        raise UserError("\n".join(wrong))
    print(f"{args.file}: ok ({report.what})")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
