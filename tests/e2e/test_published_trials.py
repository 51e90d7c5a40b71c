"""Trials of a sweep as DVC experiments: shown, compared, applied without training, published again."""

import csv
import io
import json
import re

import pytest
from e2e_project import Project, commit, twin


@pytest.fixture(scope="module")
def swept(with_data: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of one family, after its first sweep; nothing after that has run, and nothing is committed."""
    project = twin(with_data, tmp_path_factory.mktemp("swept") / "trials")
    project.set(families=["cvae"], tune__search__trials=4, tune__publish=1)
    commit(project, "one family")
    project.run("dvc", "repro", "train@cvae")
    printed = project.run("dvc", "repro", "tune@cvae")
    return Project(project.path, printed)


def shown(project: Project) -> dict[str, dict[str, str]]:
    """What `dvc exp show` shows of each experiment."""
    rows = csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv")))
    return {row["Experiment"]: row for row in rows if row["Experiment"]}


def table(project: Project) -> dict[str, dict[str, str]]:
    """trials.csv: name of a trial -> its row."""
    rows = csv.DictReader(io.StringIO(project.read("results/tune/cvae/trials.csv").decode()))
    return {row["trial"]: row for row in rows}


def ran(printed: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", printed)


def test_the_stage_publishes_the_best_and_the_command_the_rest(swept: Project) -> None:
    rows, trials = shown(swept), table(swept)
    (name,) = rows
    assert f"dvc exp apply {name}" in swept.printed
    finished = {t: row for t, row in trials.items() if row["status"] == "completed"}
    best = min(finished, key=lambda trial: float(finished[trial]["val_neg_elbo_nats"]))
    assert re.fullmatch(rf"cvae-[0-9a-f]{{6}}-{best}", name)

    swept.stage("publish", "--all")
    everything = shown(swept)
    assert {key[-len(best) :] for key in everything} == trials.keys() - {"baseline"}
    assert everything[name]["rev"] == rows[name]["rev"]  # the one that was there stays
    for key, row in everything.items():
        trial = trials[key[-len(best) :]]
        assert float(row["models.cvae.latent_dim"]) == float(trial["latent_dim"])
        assert float(row["models.cvae.beta"]) == float(trial["beta"])
        figures = [float(value) for column, value in row.items() if column.endswith("neg_elbo_nats") and value]
        expected = [float(trial["val_neg_elbo_nats"])] if trial["status"] == "completed" else []
        assert figures == pytest.approx(expected, abs=1e-5)


def test_an_applied_trial_needs_no_training_and_only_what_follows_runs(swept: Project) -> None:
    trials = table(swept)
    applied = next(name for name in shown(swept) if trials[name[-9:]]["status"] == "completed")
    trial = trials[applied[-9:]]
    swept.run("dvc", "exp", "apply", applied)
    model = json.loads(swept.read("models/cvae/baseline/config.json"))["model"]
    assert (model["latent_dim"], model["beta"]) == (int(trial["latent_dim"]), float(trial["beta"]))
    assert json.loads(swept.run("dvc", "status", "--json", "train@cvae", "tune@cvae")) == {}
    assert set(ran(swept.run("dvc", "repro", "evaluate@cvae"))) == {"prior@cvae", "evaluate@cvae"}
    assert json.loads(swept.run("dvc", "status", "--json", "evaluate@cvae")) == {}
    scores = json.loads(swept.read("results/evaluate/cvae.json"))
    expected = float(trial["val_neg_elbo_nats"])  # of the trial, and not of what was the baseline before
    assert scores["baseline"]["test"]["neg_elbo_nats"] == pytest.approx(expected, rel=0.1)
