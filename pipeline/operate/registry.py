"""list the models of the registry, promote one to production, go back to the one before"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Params
from pipeline.errors import UserError, did_you_mean

EXAMPLES = """\
examples:
  python -m pipeline registry ls
  python -m pipeline registry promote vae --push
  python -m pipeline registry show vae
  python -m pipeline registry rollback vae --push
  dvc artifacts get URL-OF-THE-REPOSITORY vae --stage prod --out model

F is a family of params.yaml. In tags and for `dvc artifacts get` its name has - for _."""


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("ls", help="a line a family", description=_LS)
    add.set_defaults(do=_ls)
    add = actions.add_parser("show", help="all versions of a family", description=_SHOW)
    add.add_argument("family", metavar="F")
    add.set_defaults(do=_show)
    add = actions.add_parser("promote", help="bring a commit's model into a stage", description=_PROMOTE)
    add.add_argument("family", metavar="F")
    add.add_argument("--rev", metavar="REV", help="commit, branch or tag; HEAD without it")
    add.add_argument("--bump", choices=("major", "minor", "patch"), default="minor", help="of a new version (minor)")
    _shared(add)
    add.set_defaults(do=_promote)
    add = actions.add_parser("rollback", help="bring the version before into a stage again", description=_ROLLBACK)
    add.add_argument("family", metavar="F")
    add.add_argument("--to", metavar="VERSION", help="a version that was in the stage; without it the one before")
    _shared(add)
    add.set_defaults(do=_rollback)


def _shared(parser: ArgumentParser) -> None:
    parser.add_argument("--stage", metavar="NAME", default="prod", help="(prod)")
    parser.add_argument("--message", metavar="TEXT", help="why, for the tags")
    parser.add_argument(
        "--push", nargs="?", const="origin", metavar="REMOTE", help="model to the DVC remote, tags to REMOTE (origin)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done")


_LS = "Which version of each family is in production, its figure on the test split, and the newest version."
_SHOW = (
    "Every version with its figure on the test split, the fingerprints of its data, parameters and code, who "
    "registered it and when, and when it was in which stage."
)
_PROMOTE = (
    "Gives the commit's model of the family a version (a tag such as vae@v1.2.0), where it has none yet, and brings it "
    "into the stage (a tag such as vae#prod#3). Refused where the commit's dvc.lock has no such model or is not that "
    "of its code and parameters, and where neither the cache nor the DVC remote has the model's files."
)
_ROLLBACK = (
    "Brings the version that was in the stage before into it again, by a new tag. A second rollback goes back further, "
    "not to what the first one left."
)


def main(params: Params, args: Namespace) -> None:
    family = getattr(args, "family", None)
    if family is not None and family not in params.models:
        raise UserError(f"{family}: no family under `models` in params.yaml{did_you_mean(family, params.models)}")
    for line in args.do(params, args, Path()):
        print(line)


def _ls(params: Params, args: Namespace, root: Path) -> Sequence[str]:
    from pipeline.registry.telling import overview

    return overview(root, params.models, params.families)


def _show(params: Params, args: Namespace, root: Path) -> Sequence[str]:
    from pipeline.registry.telling import in_full

    return in_full(root, args.family)


def _promote(params: Params, args: Namespace, root: Path) -> Sequence[str]:
    from pipeline.registry.promotion import check_clean, promote
    from pipeline.registry.telling import told

    if args.rev is None:
        check_clean(root)
    done = promote(root, args.family, args.rev or "HEAD", message=args.message or f"promote {args.family}",
                   bump=args.bump, stage=args.stage, push_to=args.push, dry_run=args.dry_run)  # fmt: skip
    return told(done, args.stage, args.push, dry_run=args.dry_run)


def _rollback(params: Params, args: Namespace, root: Path) -> Sequence[str]:
    from pipeline.registry.promotion import rollback
    from pipeline.registry.telling import told

    done = rollback(root, args.family, message=args.message or f"roll {args.family} back", to=args.to,
                    stage=args.stage, push_to=args.push, dry_run=args.dry_run)  # fmt: skip
    return told(done, args.stage, args.push, dry_run=args.dry_run)
