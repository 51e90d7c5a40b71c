"""What a job runs: a commit that origin has, perhaps with changes, of a project whose results can come home."""

from collections.abc import Iterable
from configparser import ConfigParser, Error
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.addresses import without_passwords
from pipeline.errors import UserError, did_you_mean
from pipeline.git import GitFailed, git
from pipeline.jobs.patch import changed_files, named, patch_of
from pipeline.progress import say

ORIGIN = "origin"


@dataclass(frozen=True)
class Source:
    """A commit of the project in a folder.

    Attributes:
        top: of the repository.
        folder: the project in it, with forward slashes.
        commit: 40 hex digits.
        patch: changes to the commit; empty: none.
        origin: the repository's address for the head, without a password.
        home: what origin is called at home.
        place: the repository's address at home, for this machine.
        locked: whether there is a dvc.lock.
        remote: DVC's, where it is not the default one.
        author, email: of the user.
    """

    top: Path
    folder: str
    commit: str
    patch: bytes = field(repr=False)
    origin: str
    home: str
    locked: bool
    remote: str | None
    author: str
    email: str
    place: str = field(repr=False)

    @classmethod
    def of(
        cls, project: Path, *, ref: str | None = None, dirty: bool = False, origin: str | None = None,
        remote: str | None = None,
    ) -> "Source":  # fmt: skip
        """Find out, and check all that can be checked without the cluster.

        Raises:
            UserError: no such commit, changes that are not committed, no origin, or no DVC remote; the commit is not
                at origin; origin does not answer.
        """
        top, folder = _place(project)
        commit = _commit(top, ref)
        patch = _changes(top, commit, ref=ref, dirty=dirty)
        place, address = _origin(top, origin)
        chosen = _remote(_dvc_config(top, folder, commit, patch), remote)
        if chosen is not None:
            say(f"note: {chosen}")
        author, email = (_ident(top, part) for part in ("name", "email"))
        _check_pushed(top, commit, place, ref)
        home = ORIGIN if _has_origin(top) else place
        locked = _text(top, folder, "dvc.lock", commit, patch) is not None
        return cls(top, folder, commit, patch, address, home, locked, remote, author, email, place)

    def check_name(self, name: str | None) -> None:
        """Raises UserError where origin has an experiment of this name, that the user chose, on the commit already."""
        if name is None:
            return
        reference = f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"
        if git(self.top, "ls-remote", self.place, reference):
            raise UserError(
                f"--name {name}: origin has an experiment of this name on commit {self.commit[:12]}; "
                f"choose another, or remove it: dvc exp remove --git-remote {self.home} {name}"
            )


def _place(project: Path) -> tuple[Path, str]:
    try:
        top = Path(git(project, "rev-parse", "--show-toplevel"))
    except GitFailed:
        raise UserError(
            f"{project}: no Git repository, so there is no commit to run; make one: git init && git add . && git commit"
        ) from None
    return top, project.resolve().relative_to(top.resolve()).as_posix()


def _commit(top: Path, ref: str | None) -> str:
    try:
        return git(top, "rev-parse", "--verify", "--quiet", f"{ref or 'HEAD'}^{{commit}}")
    except GitFailed:
        if ref is None:
            raise UserError(f"{top}: no commit yet; make one: git add . && git commit") from None
        raise UserError(f"--ref {ref}: no such commit here; see `git log --all`") from None


def _changes(top: Path, commit: str, *, ref: str | None, dirty: bool) -> bytes:
    if ref is not None:
        if dirty:
            raise UserError("--dirty: the changes are to what is checked out; leave out --ref, or check it out")
        return b""
    files = changed_files(top)
    if files and not dirty:
        raise UserError(f"uncommitted changes: {named(files)}; commit them, or send them along with --dirty")
    return patch_of(top, commit) if files else b""


def _has_origin(top: Path) -> bool:
    return ORIGIN in git(top, "remote").splitlines()


def _origin(top: Path, given: str | None) -> tuple[str, str]:
    """Where the commit must be: the repository's address for this machine, and `given` or the same for the head."""
    if given is None and not _has_origin(top):
        raise UserError(
            f"{top}: no Git remote `origin`, from which the head could clone; add it: git remote add origin URL"
        )
    here = git(top, "remote", "get-url", ORIGIN) if _has_origin(top) else str(given)
    there = _absolute(top, given or here)
    if without_passwords(there) != there:
        say("note: the password in origin's address stays here; the head needs its own access to origin")
    return _absolute(top, here), without_passwords(there)


def _absolute(top: Path, address: str) -> str:
    return str((top / address).resolve()) if ":" not in address else address


def _text(top: Path, folder: str, name: str, commit: str, patch: bytes) -> str | None:
    """A file of the project, as the job will see it."""
    path = f"{folder}/{name}".removeprefix("./")
    try:
        return (top / path).read_text(encoding="utf-8") if patch else git(top, "show", f"{commit}:{path}")
    except (GitFailed, FileNotFoundError):
        return None


def _dvc_config(top: Path, folder: str, commit: str, patch: bytes) -> ConfigParser:
    """.dvc/config as the job will see it: config.local does not travel."""
    name = ".dvc/config"
    text = _text(top, folder, name, commit, patch)
    if text is None:
        raise UserError(f"{name}: not in the commit, so this is no DVC project; run `dvc init` and commit")
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except Error as error:
        raise UserError(f"{name}: not readable ({str(error).splitlines()[0]}); mend it and commit") from None
    return parser


def _remote(config: ConfigParser, name: str | None) -> str | None:
    """Check that results can come home through DVC's remote `name`; what is worth knowing of it."""
    urls = {
        section.strip("'").removeprefix('remote "').removesuffix('"'): config[section].get("url", "")
        for section in config.sections()
        if section.strip("'").startswith('remote "')
    }
    chosen = name or config.get("core", "remote", fallback=None)
    if chosen is None or not urls:
        raise UserError(
            ".dvc/config: no DVC remote in the commit, so results could not come home; "
            "add one and commit: dvc remote add -d storage s3://BUCKET/vae-pipeline/dvc"
        )
    if chosen not in urls:
        raise UserError(f".dvc/config: no DVC remote {chosen!r} in the commit{did_you_mean(chosen, urls)}")
    url = urls[chosen]
    if "://" in url:
        return None
    if not Path(url).is_absolute():
        raise UserError(
            f".dvc/config: the DVC remote {chosen!r} is the folder {url}, which would be one of the head's; "
            f"results come home through an address: dvc remote modify {chosen} url s3://BUCKET/vae-pipeline/dvc"
        )
    return f"the DVC remote {chosen!r} is the folder {url}: the job uses that of the head"


def _ident(top: Path, part: str) -> str:
    try:
        return git(top, "config", f"user.{part}")
    except GitFailed:
        raise UserError(f'Git does not know who you are; git config --global user.{part} "…"') from None


def _check_pushed(top: Path, commit: str, place: str, ref: str | None) -> None:
    shown = without_passwords(place)
    try:
        tips = _tips(top, place)
        if _is_in(top, commit, tips.values()):
            return
        missing = [name for name, tip in tips.items() if not _is_known(top, tip)]
        if missing:
            git(top, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", place, *missing)
            if _is_in(top, commit, tips.values()):
                return
    except GitFailed as error:
        raise UserError(
            f"origin ({shown}) does not answer: {without_passwords(str(error))}; check the address and your access"
        ) from None
    what = "HEAD" if ref is None else f"{ref}:refs/heads/BRANCH"
    raise UserError(f"commit {commit[:12]} is not at origin ({shown}); push it: git push origin {what}")


def _tips(top: Path, place: str) -> dict[str, str]:
    """Each branch and tag there -> what it points to."""
    listed = git(top, "ls-remote", "--heads", "--tags", "--refs", place).splitlines()
    return {name: tip for tip, _, name in (line.partition("\t") for line in listed)}


def _is_in(top: Path, commit: str, tips: Iterable[str]) -> bool:
    """Whether one of them, as far as they are known here, has the commit."""
    known = [tip for tip in set(tips) if tip == commit or _is_known(top, tip)]
    return bool(known) and not git(top, "rev-list", "-n", "1", commit, "--not", *known)


def _is_known(top: Path, tip: str) -> bool:
    try:
        git(top, "cat-file", "-e", f"{tip}^{{commit}}")
    except GitFailed:
        return False
    return True
