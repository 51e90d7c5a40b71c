"""list, show, compare, repair and remove the training runs of compute.storage"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import Params
from pipeline.errors import Busy, UserError, printable

if TYPE_CHECKING:
    from pipeline.operate._stored import Stored
    from pipeline.train.folders import Folder

EXAMPLES = """\
examples:
  python -m pipeline runs ls
  python -m pipeline runs show vae-3f2a
  python -m pipeline runs diff vae-3f2a vae-91bc
  python -m pipeline runs repair --dry-run
  python -m pipeline runs rm --finished

NAME is the name of a run's folder, or the beginning of it where no other run begins so."""


def arguments(parser: ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, RawDescriptionHelpFormatter
    parser.add_argument("--storage", metavar="PLACE", help="a folder or an address; compute.storage without it")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("ls", help="a line a run", description=_LS)
    add.set_defaults(do=_ls)
    add = actions.add_parser("show", help="all that is known of a run", description=_SHOW)
    add.add_argument("name", metavar="NAME")
    add.set_defaults(do=_show)
    add = actions.add_parser("diff", help="what differs between two runs", description=_DIFF)
    add.add_argument("names", metavar="NAME", nargs=2)
    add.set_defaults(do=_diff)
    add = actions.add_parser("repair", help="mend what a kill or a bad disk left", description=_REPAIR)
    add.add_argument("names", metavar="NAME", nargs="*", help="all that no process works on, without one")
    add.add_argument("--dry-run", action="store_true", help="say what is wrong, and change nothing")
    add.set_defaults(do=_repair)
    add = actions.add_parser("rm", help="remove runs", description=_RM)
    add.add_argument("names", metavar="NAME", nargs="*")
    add.add_argument("--finished", action="store_true", help="all that are finished")
    add.add_argument("--all", action="store_true", help="all")
    add.set_defaults(do=_rm)


_LS = (
    "Status is finished, running (by which process), stopped at an epoch (the same command goes on from there), or "
    "damaged (`runs repair`). best and last are the family's primary validation figure, the negative ELBO or the "
    "distortion."
)
_SHOW = "Its parameters, what it was trained on and by which code, its epochs, speed and checkpoints."
_DIFF = "Which values, data and code differ. The same in all three: the same run."
_REPAIR = (
    "Names every damage: unfinished files of dead processes, damaged checkpoints, half or damaged lines of logs, "
    "checkpoints that the log has lost rows before, a lost run.json, a lease that nobody renews. Says what it did."
)
_RM = "Removes runs with their checkpoints. One that a process works on is never removed."


def main(params: Params, args: Namespace) -> None:
    from pipeline.train.folders import open_folder, store_of

    store = store_of(params.compute) if args.storage is None else open_folder(args.storage)
    for line in args.do(params, args, store):
        print(printable(line))


def _ls(params: Params, args: Namespace, store: "Folder") -> Sequence[str]:
    from pipeline.operate._stored import stored_runs
    from pipeline.operate._told import table

    runs = stored_runs(store)
    return list(table(runs)) if runs else [f"{store.location}: no runs"]


def _show(params: Params, args: Namespace, store: "Folder") -> Sequence[str]:
    from pipeline.operate._stored import chosen, stored_runs
    from pipeline.operate._told import in_full

    (run,) = chosen(stored_runs(store), [args.name], store)
    return list(in_full(run))


def _diff(params: Params, args: Namespace, store: "Folder") -> Sequence[str]:
    from pipeline.operate._stored import chosen, stored_runs
    from pipeline.operate._told import difference

    runs = stored_runs(store)
    (one,), (other,) = (chosen(runs, [name], store) for name in args.names)
    return list(difference(one, other))


def _repair(params: Params, args: Namespace, store: "Folder") -> Sequence[str]:
    from pipeline.operate._repair import left_in, repair
    from pipeline.operate._stored import chosen, stored_runs

    runs = stored_runs(store)
    wanted = chosen(runs, args.names, store) if args.names else runs
    said = [] if args.names else left_in(store, dry_run=args.dry_run)
    for run in wanted:
        if not args.names and run.holder is not None:
            said.append(f"{run.name}: {run.holder} is working on it; left alone")
            continue
        mended = repair(run, lambda name: _described(params, name), dry_run=args.dry_run)
        said += [f"{run.name}: {line}" for line in mended]
    if args.dry_run and said:
        said.append("nothing was changed; the same without --dry-run mends it")
    return said or [f"{_names(wanted) or store.location}: nothing to mend"]


def _rm(params: Params, args: Namespace, store: "Folder") -> Sequence[str]:
    from pipeline.operate._stored import chosen, stored_runs
    from pipeline.operate._told import size
    from pipeline.train.lock import remove_run

    if bool(args.names) + args.finished + args.all != 1:
        raise UserError("runs rm: expected names of runs, or --finished, or --all")
    runs = stored_runs(store)
    going = chosen(runs, args.names, store) if args.names else runs
    if args.finished:
        going = [run for run in runs if run.finished is not None and run.holder is None]
    for run in going:  # all or none
        if run.holder is not None:
            raise Busy(f"{run.folder.location}: {run.holder} is working here; stop it first; nothing was removed")
    for run in going:
        remove_run(run.folder)
    freed = size(sum(run.bytes for run in going))
    return [f"removed {len(going)} runs, {freed}: {_names(going)}" if going else "no such runs; nothing was removed"]


def _names(runs: "Sequence[Stored]") -> str:
    return ", ".join(run.name for run in runs)


def _described(params: Params, name: str) -> dict[str, Any] | None:
    """What the run of this name is, where it is that of a family in params.yaml on the shards that are here."""
    from pipeline.stages import SHARDS
    from pipeline.train.run import TrainRun

    for family, model in params.models.items():
        try:
            run = TrainRun.of(model, params.train, SHARDS, params.compute)
        except UserError:  # there are no shards here
            return None
        if name == run.folder_name(family):
            return {"kind": "train", "family": family, **run.described}
    return None
