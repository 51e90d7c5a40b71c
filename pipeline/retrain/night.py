"""One retraining, from the look for new data to the promotion.

Everything is done in a clone, and what takes long goes on where a killed process left it: ingest and shard from DVC's
run-cache, training from its checkpoints, an experiment that was finished by its name.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Params, fingerprint
from pipeline.errors import UserError
from pipeline.git import GitFailed, git
from pipeline.progress import say
from pipeline.retrain import experiment, origin, promotion, report
from pipeline.retrain.alone import alone
from pipeline.retrain.clone import PLACE, Clone, cloned
from pipeline.retrain.data_gate import gated
from pipeline.retrain.report import MARKDOWN, Report
from pipeline.retrain.sources import look

PROMOTED, KEPT, NOTHING_NEW = 0, 10, 11
LOCK = PLACE / "lock"
OUT = Path(".runs/retrain")


class DataRefused(UserError):
    """The new data are not trained on."""

    code = 12


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        branch: propose the commit as this branch of origin, and promote nothing; empty: retrain/ and the experiment's
            name; None: promote.
        out: where the decision goes; None: a folder of the experiment's name below OUT.
        wait_s: how long to wait for another retraining to end.
    """

    families: tuple[str, ...]
    dry_run: bool = False
    force: bool = False
    push: bool = False
    branch: str | None = None
    out: Path | None = None
    wait_s: float = 0.0

    @property
    def publishes(self) -> bool:
        """Whether origin and the DVC remote get something."""
        return not self.dry_run and (self.push or self.branch is not None)

    def proposed(self, name: str) -> str:
        """The branch of a proposal, of an experiment `name`."""
        return self.branch or f"retrain/{name}"


def retrain(home: Path, params: Params, options: Options) -> int:
    """Retrain the project at `home`. PROMOTED, KEPT or NOTHING_NEW.

    Raises:
        Busy: another retraining of this project is running.
        DataRefused: the new data cannot be ingested, or are too far from those before.
        UserError: anything else. Then, and whenever this process is killed, everything is as it was.
    """
    _check_place(home)
    with alone(home / LOCK, wait_s=options.wait_s):
        if options.dry_run and (home / promotion.JOURNAL).exists():
            raise UserError("a promotion was broken off; run once without --dry-run, which finishes it")
        if finished := promotion.finish(home):
            say(f"finished what was begun: {finished}")
            return PROMOTED
        return _night(home, params, options)


def _check_place(home: Path) -> None:
    """That the project is the whole of a repository, with its history, and somebody who commits."""
    if Path(git(home, "rev-parse", "--show-toplevel")).resolve() != home:
        raise UserError(f"{home}: not the top of a Git repository, where the registry has its tags")
    if git(home, "rev-parse", "--is-shallow-repository") == "true":
        raise UserError("this is a shallow clone; `git fetch --unshallow` (GitHub Actions: fetch-depth: 0)")
    try:
        git(home, "var", "GIT_COMMITTER_IDENT")
    except GitFailed:
        raise UserError("Git does not know who you are; set user.name and user.email (`git config`)") from None


def _night(home: Path, params: Params, options: Options) -> int:
    if changed := promotion.changes(home):
        raise UserError(f"{changed[0]}: changed since HEAD; commit or stash it, a retraining begins with a commit")
    head, branch = git(home, "rev-parse", "HEAD"), promotion.checked_out(home)
    sources = look(home, params, options.families)
    say(sources.said())
    if not sources.is_new and not options.force:
        return NOTHING_NEW
    name = f"retrain-{head[:7]}-{fingerprint([sources.digest, list(options.families)])[:8]}"
    if options.publishes:
        _ask_origin(home, head, branch, options, name)
    begun = Report(name, head, sources, dry_run=options.dry_run)
    with cloned(home, head, params, sources) as clone:
        if not clone.remote and (options.push or options.branch is not None):
            raise UserError("no DVC remote to push the model to; `dvc remote add -d NAME URL`, and commit .dvc/config")
        decided = _decided(clone, params, options, gated(clone, params, begun))
        out = home / (options.out or OUT / name)
        report.write(decided, out)
        for line in decided.summary():
            say(line)
        say(f"decision: {out / MARKDOWN}")
        if decided.refused:
            raise DataRefused("\n".join(f"new data refused: {reason}" for reason in decided.refused))
        if not decided.promoted:
            return KEPT
        if not options.dry_run:
            _follow(clone, decided, options, branch, out)
        return PROMOTED


def _ask_origin(home: Path, head: str, branch: str | None, options: Options, name: str) -> None:
    """That it would take what may come of this night; and what another checkout made of it already."""
    there = origin.listed(home)
    if options.push:
        origin.check_push(home, there, branch, head)
    experiment.fetch(home, there, head, name)
    if options.branch is not None:
        origin.check_branch(home, there, options.proposed(name), head, experiment.reference(head, name))


def _decided(clone: Clone, params: Params, options: Options, checked: Report) -> Report:
    """The challenger trained, and compared with the champion; nothing of it where the data are refused."""
    from pipeline.retrain import challenge

    if checked.refused:
        return checked
    brought = challenge.champions(clone, params, options.families)
    made = challenge.trained(clone, params, options.families, checked.name)
    if not options.dry_run:
        experiment.show(clone)
    if options.publishes:
        experiment.publish(clone, checked.name)
    decided = replace(checked, verdicts=tuple(challenge.judged(clone, params, options.families, brought)))
    if not decided.promoted or options.dry_run:
        return decided
    return replace(decided, commit=promotion.commit_results(clone, decided, made))


def _follow(clone: Clone, decided: Report, options: Options, branch: str | None, out: Path) -> None:
    assert decided.commit is not None, "a promoted model without a commit"
    if options.branch is None:
        say(promotion.promote(clone, decided, decided.commit, branch=branch, push=options.push))
        return
    proposed = options.proposed(decided.name)
    promotion.propose(clone, decided.commit, proposed)
    say(f"{proposed} is at origin; open a pull request: gh pr create --head {proposed} --fill --body-file "
        f"{out / MARKDOWN}; after it is merged: python -m pipeline registry promote FAMILY")  # fmt: skip
