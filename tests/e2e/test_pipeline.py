"""The pipeline as a user runs it: real DVC, real Git, real Ray, on the digits."""

import json
import math
import re
import shutil

import pytest
from e2e_project import FAMILIES, Project

STAGES = {"train", "tune", "prior", "evaluate", "export"}


def ran(printed: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", printed)


def test_make_repro_runs_every_stage_once_and_prints_results_times_and_the_report(reproduced: Project) -> None:
    expected = ["ingest", "shard", "features", *(f"{stage}@{f}" for stage in STAGES for f in FAMILIES), "report"]
    assert sorted(ran(reproduced.printed)) == sorted(expected)
    for family in FAMILIES:
        scores = json.loads(reproduced.read(f"results/evaluate/{family}.json"))
        for model in ("baseline", "best"):
            assert f"{scores[model]['test']['neg_elbo_nats']:.2f}" in reproduced.printed
        assert re.search(rf"tune@{family} +\d+\.\d\n", reproduced.printed)
    assert f"{reproduced.path}/report/index.html" in reproduced.printed


def test_output_is_clean_of_warnings_and_tracebacks(reproduced: Project) -> None:
    noise = [line for line in reproduced.printed.splitlines() if re.search(r"warn|traceback|deprecat", line, re.I)]
    assert noise == []


def test_second_repro_does_nothing_and_says_so(reproduced: Project) -> None:
    printed = reproduced.run("make", "repro")
    assert ran(printed) == []
    assert "up to date" in printed


def test_all_sections_of_metrics_and_files_are_there(reproduced: Project) -> None:
    scores = json.loads(reproduced.read("results/evaluate/cvae.json"))["best"]["test"]
    assert {"neg_elbo_nats", "distortion_nats", "rate_nats", "nll_nats", "nll_samples", "mse", "active_units"} <= set(
        scores
    )
    assert scores["nll_samples"] == 5
    codes = json.loads(reproduced.read("results/evaluate/vqvae.json"))["best"]["test"]
    assert {"neg_elbo_nats", "mse", "codebook_used_fraction", "codebook_perplexity"} <= set(codes)
    for family in FAMILIES:
        names = {file.name for file in (reproduced.path / "artifacts" / family).iterdir()}
        model = {"README.md", "config.json", "decoder.onnx", "encoder.onnx", "metrics.json", "model.safetensors"}
        assert names == model | ({"prior.json", "prior.safetensors"} if family == "vqvae" else set())
    assert codes["prior_nats"] < codes["rate_nats"]
    expected = 20 * codes["prior_nats"] / math.log(2) / 8  # bytes
    assert 20 * codes["coded_bits"] / 8 == pytest.approx(expected + 28, rel=0.2)  # and header and end of the file
    assert json.loads(reproduced.read("results/diagnosis/vqvae.json")) is not None


def test_a_change_runs_only_what_it_touches(reproduced: Project) -> None:
    def planned(**values: object) -> set[str]:
        reproduced.set(**values)
        printed = reproduced.run("dvc", "repro", "--dry")
        reproduced.run("git", "checkout", "-q", "params.yaml")
        return set(ran(printed))

    assert planned(compute__workers=2, compute__max_failures=0) == set()
    assert planned(models__vqvae__commitment_weight=0.5) == {
        "train@vqvae",
        "tune@vqvae",
    }  # what follows depends on them
    assert planned(tune__spaces__vqvae={"num_codes": [8, 16]}) == {"tune@vqvae"}
    assert planned(report__title="Another") == {"report"}
    assert planned(data__validation_fraction=0.2) == {"ingest"}


def test_an_experiment_on_evaluation_trains_nothing_and_can_be_compared(reproduced: Project) -> None:
    printed = reproduced.run("dvc", "exp", "run", "-n", "few-samples", "-S", "evaluate.nll_samples=3")
    try:
        # the likelihood of a VQ-VAE draws no samples, so its figures, and with them its artifacts, are as they were
        assert set(ran(printed)) == {"evaluate@cvae", "evaluate@vqvae", "export@cvae", "report"}
        table = reproduced.run("dvc", "exp", "show", "--md", "--only-changed")
        assert "few-samples" in table
        assert "evaluate.nll_samples" in table
        assert "nll_nats" in reproduced.run("dvc", "metrics", "diff", "--md")
    finally:
        reproduced.run("git", "checkout", "-q", ".")
        reproduced.run("dvc", "checkout", "-q")
    assert json.loads(reproduced.run("dvc", "status", "--json")) == {}


def test_plots_show_curves_sweeps_and_pictures(reproduced: Project) -> None:
    reproduced.run("dvc", "plots", "show", "-o", "shown")
    try:
        page = (reproduced.path / "shown" / "index.html").read_text()
        pictures = {file.name for file in (reproduced.path / "shown" / "static").iterdir()}
    finally:
        shutil.rmtree(reproduced.path / "shown")
    assert "curves.tsv" in page
    assert "trials.csv" in page
    assert any("reconstructions" in name for name in pictures)


def test_everything_removed_and_made_again_is_the_same_bytes(reproduced: Project) -> None:
    """With the caches gone as well, so that every stage really runs; for time's sake one family's."""
    before = reproduced.read("dvc.lock")
    kept = reproduced.path.parent / "kept"
    shutil.copytree(reproduced.path / ".dvc", kept)
    for name in ("data", "models/cvae", "results/train/cvae", "results/tune/cvae", "artifacts/cvae", ".dvc/cache"):
        shutil.rmtree(reproduced.path / name)
    reproduced.forget_runs()
    stages = ["ingest", "shard", "features", "train@cvae", "tune@cvae", "prior@cvae", "evaluate@cvae", "export@cvae"]
    printed = reproduced.run("dvc", "repro", "--force", "--single-item", *stages)
    shutil.copytree(kept, reproduced.path / ".dvc", dirs_exist_ok=True)
    assert ran(printed) == stages
    assert reproduced.read("dvc.lock") == before
    assert reproduced.run("git", "status", "--porcelain") == ""


def test_a_mistake_in_params_stops_make_repro_before_anything_runs(reproduced: Project) -> None:
    path = reproduced.path / "params.yaml"
    path.write_text(path.read_text().replace("latent_dim: 4", "latent_dmi: 4"))
    try:
        printed = reproduced.run("make", "repro", code=2)
    finally:
        reproduced.run("git", "checkout", "-q", "params.yaml")
    assert "models.cvae.latent_dmi: unknown key; did you mean 'latent_dim'?" in printed
    assert ran(printed) == []
    assert "Running stage" not in printed


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_shard_is_named_with_the_remedy(reproduced: Project, damage: str) -> None:
    shard = next((reproduced.path / "data/shards/train").glob("*.tar"))
    content = shard.read_bytes()
    shard.unlink()  # never write through a link into DVC's cache
    if damage == "flipped":
        shard.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    reproduced.set(train__epochs=2)  # a run that is not finished
    try:
        printed = reproduced.stage("train", "--family", "cvae", code=1)
    finally:
        shard.write_bytes(content)
        reproduced.run("git", "checkout", "-q", "params.yaml")
    assert shard.name in printed
    assert "dvc checkout" in printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()) == 1


def test_new_results_can_be_committed(reproduced: Project) -> None:
    """Nothing that DVC keeps is left for Git to add."""
    assert reproduced.run("git", "status", "--porcelain") == ""
    tracked = reproduced.run("git", "ls-files").splitlines()
    assert "dvc.lock" in tracked
    assert not [name for name in tracked if name.endswith((".tar", ".safetensors", ".png", ".onnx"))]
