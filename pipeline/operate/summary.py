"""print each family's primary metric, how long each stage took, and where the report is"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from pipeline import files
from pipeline.__main__ import timings
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.stages import RESULTS
from vae_core.metrics.primary import primary

STAGES = ("ingest", "shard", "features", "train", "tune", "prior", "evaluate", "export", "report")


def main(params: Params, args: Namespace) -> None:
    print("\n".join([*_scores(params.families), "", *_times(timings(params.compute.storage)), "", _report()]))


def _scores(families: tuple[str, ...]) -> Iterator[str]:
    yield "negative ELBO on the test split, nats an image (lower is better)"
    yield f"  {'family':<12}{'baseline':>10}{'best':>10}"
    for family in families:
        path = RESULTS / "evaluate" / f"{family}.json"
        if not path.exists():
            raise UserError(f"{path}: no such file; run `dvc repro` first")
        scores = files.read_json(path)
        name = primary(scores["best"]["test"])
        baseline, best = (scores[model]["test"][name] for model in ("baseline", "best"))
        yield f"  {family:<12}{baseline:>10.2f}{best:>10.2f}{'' if name == 'neg_elbo_nats' else f'  ({name})'}"


def _times(folder: Path) -> Iterator[str]:
    """Seconds of the last run of each stage; a stage that DVC took from its cache keeps its earlier figure."""
    yield "seconds of each stage when it last ran here"
    for stage in STAGES:
        for file in sorted(folder.glob(f"{stage}*")):
            yield f"  {file.name:<18}{float(file.read_text()):>8.1f}"


def _report() -> str:
    return f"report: {Path('report/index.html').resolve()}"
