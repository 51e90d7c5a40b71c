"""python -m pipeline COMMAND [--family F]: the one entry of every stage and tool.

It finds commands by their files (stages/NAME.py, operate/NAME.py), so that adding one does not change this file,
which every stage of dvc.yaml depends on. A tool adds its own arguments in a function `arguments(parser)`, and imports
what is slow inside its functions.
"""

import argparse
import ast
import errno
import gc
import importlib
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline import ending
from pipeline.config import load_params
from pipeline.errors import StorageFailed, UserError, did_you_mean, printable

HERE = Path(__file__).parent
STAGES = "pipeline.stages."
EXIT_CODES = """\
    0  done
    1  a mistake that the message explains
    2  wrong usage
    3  training diverged: a loss or gradient was not finite more often than allowed
    4  ranks or trials died more often than allowed, for want of memory too
    5  a disk is full, read-only or out of reach, or the store of checkpoints does not answer
    6  Ray does not answer or cannot start, or lost a node or its controller more often than allowed
    7  another process works on the same run
   10  retrain: the champion is kept
   11  retrain: there is nothing new
   12  retrain: the new data are refused
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM, or the dvc that started it ended)"""
_ROOM, _ACCESS = "make room or make it writable", "let this user read and write there"
DISK_FAILS = {  # and what helps
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _ROOM,
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EIO: "look after the disk",
}
TIMINGS = "seconds"  # a file for each stage, below compute.storage: wall-clock time enters no output of DVC


def commands() -> dict[str, str]:
    """Name of each command -> its module."""
    folders = ("stages", "operate")
    files = [(f.stem, folder) for folder in folders for f in sorted((HERE / folder).glob("[a-z]*.py"))]
    return {name: f"pipeline.{folder}.{name}" for name, folder in files}


def summary(module: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    file = HERE.parent / (module.replace(".", "/") + ".py")
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    known = commands()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Runs one stage or tool. `dvc repro` runs the stages in order, and only those that changed.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<10} {summary(module)}" for name, module in known.items())
        + "\n\nexamples:\n  python -m pipeline train --family vae\n  python -m pipeline evaluate --family vqvae\n"
        "  python -m pipeline verify data/shards\n  python -m pipeline inspect --help\n\n"
        f"exit codes:\n{EXIT_CODES}",
    )
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="its own; COMMAND --help lists them")
    args = parser.parse_args(argv)
    if args.command not in known:
        parser.error(f"unknown command {args.command!r}{did_you_mean(args.command, known)}")
    return args


def parse_own(command: str, module: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command: a stage takes the family, a tool what its function `arguments` adds."""
    parser = argparse.ArgumentParser(prog=f"python -m pipeline {command}", description=summary(module))
    if module.startswith(STAGES):
        parser.add_argument(
            "--family", metavar="F", help="a name under `families` in params.yaml; train to export need it"
        )
    else:
        add = getattr(importlib.import_module(module), "arguments", None)
        if add is not None:
            add(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = parse(sys.argv[1:] if argv is None else argv)
    command, module = chosen.command, commands()[chosen.command]
    args = parse_own(command, module, chosen.arguments)
    try:
        with ending.by_signal():
            _run(command, module, args)
    except UserError as error:
        print("\n".join(f"error: {line}" for line in printable(str(error)).split("\n")), file=sys.stderr)
        return error.code
    except OSError as error:
        if error.errno not in DISK_FAILS:
            raise
        remedy = f"{DISK_FAILS[error.errno]}, then run the same command again"
        print(f"error: {error.filename or 'a disk'}: {error.strerror}; {remedy}", file=sys.stderr)
        return StorageFailed.code
    except KeyboardInterrupt as error:
        return ending.say_interrupted(error)
    return 0


def _run(command: str, module: str, args: argparse.Namespace) -> None:
    params = load_params()  # before anything slow is imported: a typo is reported in the first second
    if not module.startswith(STAGES):
        importlib.import_module(module).main(params, args)
        return
    ending.end_with_dvc()
    if args.family is not None and args.family not in params.families:
        nearest = did_you_mean(args.family, params.families)
        raise UserError(f"--family {args.family}: not under `families` in params.yaml{nearest}")
    start = time.monotonic()
    importlib.import_module(module).main(params, args.family)
    name = command if args.family is None else f"{command}@{args.family}"
    with suppress(OSError):  # the stage is done; only `summary` misses it
        timing = timings(params.compute.storage) / name
        timing.parent.mkdir(parents=True, exist_ok=True)
        timing.write_text(f"{time.monotonic() - start:.1f}\n")


def timings(storage: str) -> Path:
    """The folder of TIMINGS, which is on this machine even where `storage` is an address."""
    return Path(".runs" if "://" in storage else storage) / TIMINGS


if __name__ == "__main__":
    done = main()
    gc.freeze()  # all of it goes with the process: Python would look through it once more, for a second
    sys.exit(done)
