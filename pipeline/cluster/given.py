"""`cluster render --provider local`: the machines that the user names, checked before they enter a file."""

import getpass
import re
from argparse import Namespace
from dataclasses import replace

from pipeline.cluster.recipe import Local
from pipeline.errors import UserError

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
_PATH = re.compile(r"(~?/)?[\w.@+-]+(/[\w.@+-]+)*")  # what neither YAML nor a shell reads as anything else
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

OPTIONS = ("name", "ssh_key", "token", "venv", "head_cpus", "worker_cpus", "object_store_mib")  # that have a default


def given_machines(args: Namespace) -> Local:
    """What the options of `cluster render` say.

    Raises:
        UserError: an address is missing or given twice, or a value is one that a shell would read otherwise.
    """
    if not args.head or not args.workers:
        missing = "--head" if not args.head else "--workers"
        raise UserError(f"{missing}: expected the addresses of your machines: --head 10.0.0.1 --workers 10.0.0.2,…")
    for option, value in (("--head", args.head), *(("--workers", worker) for worker in args.workers)):
        _expect(_HOST, option, value, "an address or a name of a machine")
    addresses = (args.head, *args.workers)
    twice = next((address for address in addresses if addresses.count(address) > 1), None)
    if twice is not None:
        raise UserError(f"--workers: {twice} is named twice; each machine is the head or one worker")
    user = args.ssh_user or getpass.getuser()
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    local = replace(Local(head=args.head, workers=args.workers, ssh_user=user), **given)
    _expect(_NAME, "--name", local.name, "at most 40 letters, digits and hyphens, beginning with a letter")
    _expect(_USER, "--ssh-user", user, "a user's name")
    for option, value in (("--ssh-key", local.ssh_key), ("--token", local.token), ("--venv", local.venv)):
        if value is not None:
            _expect(_PATH, option, value, "a path of letters, digits and . _ @ + -")
    for option, value in (("--head-cpus", local.head_cpus), ("--worker-cpus", local.worker_cpus)):
        if value is not None and value < 0:
            raise UserError(f"{option}: expected at least 0, got {value}")
    if args.object_store_mib is not None and args.object_store_mib < 75:
        raise UserError(f"--object-store-mib: expected at least 75, which Ray needs, got {args.object_store_mib}")
    return local


def refuse_options(args: Namespace) -> None:
    """Raises UserError where an option for given machines was given, but no provider of them."""
    for name in ("out", "head", "workers", "ssh_user", *OPTIONS):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: only for machines that you name; add --provider local")


def _expect(pattern: re.Pattern[str], option: str, value: str, expected: str) -> None:
    if not pattern.fullmatch(value):
        raise UserError(f"{option}: expected {expected}, got {value!r}")
