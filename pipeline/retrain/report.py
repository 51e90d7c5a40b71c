"""What came out of a retraining, and the two files that say so: decision.json for programs, decision.md for people."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.retrain.champions import Champion
from pipeline.retrain.drift import Row
from pipeline.retrain.sources import Sources

if TYPE_CHECKING:
    from pipeline.retrain.gate import Decision

JSON, MARKDOWN = "decision.json", "decision.md"


@dataclass(frozen=True)
class Verdict:
    """A family's two models, and the decision between them."""

    family: str
    champion: Champion | None
    before: Mapping[str, float] | None
    now: Mapping[str, float]
    decision: "Decision"


@dataclass(frozen=True)
class Report:
    """All that a retraining found.

    Attributes:
        name: of the DVC experiment.
        head: the commit that it began with.
        commit: the one with its results; None where there are none.
        digests: of the shards' manifests, before and now; None where there are none.
        drift: the comparison of the data; empty where there were none before.
        refused: why the new data are not trained on; empty where they are.
        dry_run: nothing follows from the decision.
    """

    name: str
    head: str
    sources: Sources
    digests: tuple[str | None, str | None] = (None, None)
    drift: tuple[Row, ...] = ()
    refused: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    commit: str | None = None
    dry_run: bool = False

    @property
    def promoted(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.decision.promoted]

    @property
    def verdict(self) -> str:
        """refused, promoted or kept."""
        return "refused" if self.refused else "promoted" if self.promoted else "kept"

    def summary(self) -> Iterator[str]:
        """A line for the whole, and one for each family."""
        yield f"{self.verdict}{' (dry run: nothing follows)' if self.dry_run else ''}: {self.name}"
        yield from (f"  {reason}" for reason in self.refused)
        for each in self.verdicts:
            word = "promoted" if each.decision.promoted else "kept"
            yield f"  {each.family}: {word}: {_compared(each)}; {'; '.join(each.decision.reasons)}"


def write(report: Report, folder: Path) -> None:
    """Replace both files, the one for programs last."""
    files.write_text(folder / MARKDOWN, "\n".join(_markdown(report)) + "\n")
    files.write_json(folder / JSON, _json(report))


def _compared(verdict: Verdict) -> str:
    decision = verdict.decision
    old = "no champion" if decision.champion is None else f"champion {decision.champion:.4f}"
    gain = "" if decision.gain is None else f", gain {decision.gain:+.4f}"
    return f"{decision.metric} ({decision.direction}): {old}, challenger {decision.challenger:.4f}{gain}"


def _json(report: Report) -> dict[str, Any]:
    before, now = report.digests
    return {
        "name": report.name,
        "verdict": report.verdict,
        "dry_run": report.dry_run,
        "commits": {"head": report.head, "result": report.commit},
        "data": {
            "sources": {
                path: {"before": report.sources.before.get(path), "now": digest}
                for path, digest in report.sources.now.items()
            },
            "shards": {"before": before, "now": now},
            "drift": [
                {"what": row.what, "before": row.before, "now": row.now, "limit": row.limit, "holds": row.holds}
                for row in report.drift
            ],
            "refused": list(report.refused),
        },
        "families": {verdict.family: _json_of(verdict) for verdict in report.verdicts},
    }


def _json_of(verdict: Verdict) -> dict[str, Any]:
    decision, found = verdict.decision, verdict.champion
    return {
        "verdict": "promoted" if decision.promoted else "kept",
        "reasons": list(decision.reasons),
        "metric": decision.metric,
        "direction": decision.direction,
        "champion": None if found is None else {
            "version": found.version, "commit": found.commit, "figures": _finite(verdict.before or {}),
        },
        "challenger": {"figures": _finite(verdict.now)},
        "gain": None if decision.gain is None or not math.isfinite(decision.gain) else decision.gain,
        "min_gain": decision.min_gain,
        "limits": [
            {"figure": check.name, "value": check.value, "min": check.limit.min, "max": check.limit.max,
             "required": check.limit.required, "holds": check.holds}
            for check in decision.checks
        ],
    }  # fmt: skip


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no word for the others."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _markdown(report: Report) -> Iterator[str]:
    yield f"# Retraining {report.name}: {report.verdict}{' (dry run)' if report.dry_run else ''}"
    yield ""
    yield from (f"- {line.strip()}" for line in list(report.summary())[1:])
    yield f"- began with commit {report.head}" + (f", results in commit {report.commit}" if report.commit else "")
    for path, digest in report.sources.now.items():
        yield f"- data {path}: {report.sources.before.get(path) or 'none'} before, {digest} now (DVC's digests)"
    before, now = report.digests
    yield f"- shards: {before or 'none'} before, {now or 'none'} now (digests of their manifests)"
    for verdict in report.verdicts:
        yield from _family(verdict)
    if report.drift:
        yield from ("", "## Data", "")
        words = [_word(row.holds) if row.limit else "" for row in report.drift]
        rows = [(r.what, r.before, r.now, r.limit, word) for r, word in zip(report.drift, words, strict=True)]
        yield from _table(("", "before", "now", "allowed", ""), rows)


def _family(verdict: Verdict) -> Iterator[str]:
    decision = verdict.decision
    yield from ("", f"## {verdict.family}: {'promoted' if decision.promoted else 'kept'}", "")
    yield f"{_compared(verdict)}; least gain asked for {decision.min_gain:g}. Champion: {verdict.champion or 'none'}."
    if decision.checks:
        rows = [(c.name, _number(c.value), c.asked, _word(c.holds)) for c in decision.checks]
        yield from ("", *_table(("limit", "challenger", "asked for", ""), rows))
    yield from ("", "Both on the current test split:", "")
    old: Mapping[str, float] = verdict.before or {}
    names = list(dict.fromkeys((decision.metric, *verdict.now, *old)))
    yield from _table(("figure", "champion", "challenger", "difference"), [_figure(n, old, verdict.now) for n in names])


def _figure(name: str, old: Mapping[str, float], new: Mapping[str, float]) -> tuple[str, ...]:
    both = name in old and name in new
    return name, _number(old.get(name)), _number(new.get(name)), f"{new[name] - old[name]:+.6g}" if both else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _word(holds: bool) -> str:
    return "holds" if holds else "**broken**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
