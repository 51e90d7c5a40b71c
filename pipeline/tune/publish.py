"""A finished sweep -> the best model, the table of trials, what they had in common, and pictures of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline import files
from pipeline.figures import save_png
from pipeline.train.publish import publish_model
from pipeline.tune.figures import importance_bars, parallel_coordinates, rate_distortion
from pipeline.tune.importance import importance
from pipeline.tune.results import best_json, best_of, candidates, population_json, table
from pipeline.tune.trials import Sweep, Trial


def publish_sweep(sweep: Sweep, trials: Sequence[Trial], baseline: Path, models: Path, results: Path) -> str:
    """Keep the best by the first objective on the validation split; the baseline wins a tie.

    Args:
        baseline: directory of the baseline's model.

    Returns:
        The name of the best.
    """
    best = best_of(candidates(sweep, trials), sweep.objectives).name
    _keep(best, trials, baseline, models)
    with files.new_directory(results) as temporary:
        _write_results(sweep, trials, best, temporary)
    return best


def _write_results(sweep: Sweep, trials: Sequence[Trial], best: str, out: Path) -> None:
    found = candidates(sweep, trials)
    (out / "trials.csv").write_text(table(found, sweep.objectives))
    files.write_json(out / "best.json", best_json(found, sweep.objectives))
    files.write_json(out / "population.json", population_json(trials))
    mattered = importance(sweep, trials)
    files.write_json(out / "importance.json", mattered)
    save_png(importance_bars(mattered.get("objectives", {}), mattered.get("why", "")), out / "importance.png")
    save_png(parallel_coordinates(found, sweep.space, sweep.objectives, best), out / "parallel_coordinates.png")
    save_png(rate_distortion(found, best), out / "rate_distortion.png")


def _keep(best: str, trials: Sequence[Trial], baseline: Path, models: Path) -> None:
    winner = next((trial for trial in trials if trial.name == best), None)
    if winner is not None:
        publish_model(winner.run, winner.folder, models)
        return
    with files.new_directory(models) as temporary:
        shutil.copytree(baseline, temporary, dirs_exist_ok=True)
