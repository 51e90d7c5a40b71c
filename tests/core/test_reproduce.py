"""The bench of published figures: data, order of rows, resuming, figures, and what is kept of them."""

import gzip
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import reproduce
from bench.reproduction import idx, results, sprites
from bench.reproduction.data import Rows, open_data
from bench.reproduction.evaluation import evaluate, mig
from bench.reproduction.row import Row, Target
from bench.reproduction.rows import ORDERS, ROWS, find
from bench.reproduction.training import How, OutOfTimeError, fit, initial, order
from vae_core.config import IWAEConfig, MLPConfig, VAEConfig

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NET = MLPConfig(kind="mlp", hidden=(16,), activation="tanh")
EAGER = How(compiled=False)


def tiny(**fields: object) -> Row:
    """Twelve steps of a row on images of 8 x 8."""
    model = VAEConfig(kind="vae", latent_dim=3, network=NET)
    small = replace(find("vae_k1"), model=model, batch=20, short_batch=None, steps=12, samples=10)
    return replace(small, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IDX files of 90 training and 30 test images of 8 x 8, one of the four compressed."""
    place = tmp_path_factory.mktemp("digits")
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2, (10, 8, 8)).astype(np.uint8) * np.uint8(220)
    for name, count in (("train", 90), ("t10k", 30)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = patterns[labels] + generator.integers(0, 30, (count, 8, 8)).astype(np.uint8)
        (place / f"{name}-images-idx3-ubyte").write_bytes(idx.unparse(images))
        packed = idx.unparse(labels)
        if name == "train":
            (place / f"{name}-labels-idx1-ubyte").write_bytes(packed)
        else:
            (place / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(packed))
    return place


@pytest.fixture(scope="module")
def masks() -> Tensor:
    return sprites.padded_masks()


def test_idx_files_are_read_plain_or_compressed_and_known_not_to_be_the_published_ones(folder: Path) -> None:
    data = open_data("mnist", folder, CPU)
    assert data.train.spec.shape == (1, 8, 8)
    assert (len(data.train), len(data.test), data.train.spec.num_classes) == (90, 30, 10)
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [at % 10 for at in range(30)]
    assert not data.published


def test_npz_gives_what_the_idx_files_give(folder: Path, tmp_path: Path) -> None:
    digits = idx.read_digits(folder)
    np.savez(
        tmp_path / "mnist.npz",
        x_train=digits.train_images,
        y_train=digits.train_labels,
        x_test=digits.test_images,
        y_test=digits.test_labels,
    )
    found = idx.read_digits(tmp_path / "mnist.npz")
    assert np.array_equal(found.train_images, digits.train_images)
    assert np.array_equal(found.test_labels, digits.test_labels)


def test_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.*download"):
        idx.read_digits(tmp_path)


def test_truncated_file_is_refused(folder: Path) -> None:
    content = (folder / "train-images-idx3-ubyte").read_bytes()
    with pytest.raises(ValueError, match="expected 5,760 bytes"):
        idx.parse(content[:-1], "train-images")


def test_static_binarisation_is_black_and_white_and_the_same_each_time(folder: Path) -> None:
    one, two = (open_data("mnist_static", folder, CPU) for _ in range(2))
    assert set(one.train.images.unique().tolist()) == {0, 255}
    assert torch.equal(one.train.images, two.train.images)
    assert len(one.train) == 75
    grey = open_data("mnist", folder, CPU).test.images.float().mean()
    assert abs(one.test.images.float().mean() - grey) < 8


def test_sprites_move_by_a_pixel_a_position_and_stay_whole(masks: Tensor) -> None:
    number = torch.tensor([555 * 1024, 555 * 1024 + 1, 555 * 1024 + 32, 555 * 1024 + 1023])
    first, down, right, last = sprites.render(masks, number)[:, 0]
    assert torch.equal(first[:-1], down[1:])
    assert torch.equal(first[:, :-1], right[:, 1:])
    assert first.sum() == last.sum() == masks[555].sum() > 0
    assert sprites.factors_of(number).tolist()[3] == [2, 1, 35, 31, 31]


def test_every_row_of_an_epoch_is_taken_once_across_batches_that_do_not_divide_it() -> None:
    taken = torch.cat([rows for _, rows in order(10, 4, range(5), seed=3, device=CPU)])
    assert sorted(taken[:10].tolist()) == list(range(10))
    assert sorted(taken[10:].tolist()) == list(range(10))
    assert taken[:10].tolist() != taken[10:].tolist()


def test_rows_of_a_step_do_not_depend_on_where_the_run_began() -> None:
    whole = {step: rows.tolist() for step, rows in order(10, 4, range(9), seed=1, device=CPU)}
    for start in (1, 4, 8):
        assert {s: r.tolist() for s, r in order(10, 4, range(start, 9), seed=1, device=CPU)} == {
            step: rows for step, rows in whole.items() if step >= start
        }


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the 10 rows"):
        next(order(10, 11, range(1), seed=0, device=CPU))


def test_stopped_run_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    rows, row = open_data("mnist", folder, CPU).train, tiny()
    whole = fit(row, rows, fraction=1, seed=0, how=EAGER)
    with pytest.raises(OutOfTimeError, match="1 of 12 steps"):
        fit(row, rows, fraction=1, seed=0, how=replace(EAGER, folder=tmp_path, stop_at=time.monotonic() - 1))
    resumed = fit(row, rows, fraction=1, seed=0, how=replace(EAGER, folder=tmp_path))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert (resumed.progress.steps, resumed.progress.skipped) == (12, 0)


def test_finished_run_is_not_trained_again(folder: Path, tmp_path: Path) -> None:
    rows, how = open_data("mnist", folder, CPU).train, replace(EAGER, folder=tmp_path)
    first = fit(tiny(), rows, fraction=1, seed=0, how=how)
    again = fit(tiny(), rows, fraction=1, seed=0, how=how)
    assert again.progress == first.progress
    assert first.progress.cpu_seconds > 0
    assert all(
        torch.equal(one, two)
        for one, two in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )


def test_changed_row_or_data_does_not_go_on_from_the_checkpoint_of_another(folder: Path, tmp_path: Path) -> None:
    rows, how = open_data("mnist", folder, CPU).train, replace(EAGER, folder=tmp_path)
    fit(tiny(), rows, fraction=1, seed=0, how=how)
    for other in (tiny(batch=10), tiny(adam_epsilon=1e-8), tiny(steps=24)):
        fit(other, rows, fraction=1, seed=0, how=how)
    fit(tiny(), replace(rows, images=255 - rows.images), fraction=1, seed=0, how=how)
    assert len(list(tmp_path.iterdir())) == 5


def test_short_schedule_sees_its_share_of_the_images_in_smaller_batches() -> None:
    row = find("iwae_k50")
    assert row.steps_of(0.01) * row.batch_of(0.01) == pytest.approx(0.01 * row.steps * row.batch)
    assert row.batch_of(0.01) < row.batch == row.batch_of(0.2) == row.batch_of(1.0)
    assert row.rate(0.01) != row.rate(1.0) == row.learning_rate


def test_output_starts_at_the_mean_of_the_training_images(folder: Path) -> None:
    rows = open_data("mnist", folder, CPU).train
    decoder = initial(tiny(), rows, seed=0).decoder
    assert torch.allclose(torch.sigmoid(decoder.out.bias), rows.images.float().mean(0).flatten() / 255, atol=1e-4)


def test_training_lowers_the_likelihood_figure_and_more_draws_lower_it_further(folder: Path) -> None:
    data = open_data("mnist", folder, CPU)
    row = tiny(steps=150, learning_rate=1e-2, short_learning_rate=None)
    before, after = (fit(row, data.train, fraction=part, seed=0, how=EAGER) for part in (1 / 150, 1))
    one, many = (evaluate(row, after, data, samples=samples) for samples in (1, 50))
    assert evaluate(row, before, data, samples=1).got > one.got > many.got > 0
    assert many.standard_error is not None
    assert 0 < many.standard_error < 5


def test_likelihood_figure_is_the_same_for_the_same_weights(folder: Path) -> None:
    data, model = open_data("mnist", folder, CPU), IWAEConfig(kind="iwae", latent_dim=3, network=NET, samples=3)
    trained = fit(tiny(model=model), data.train, fraction=1, seed=0, how=EAGER)
    assert evaluate(tiny(), trained, data, samples=7) == evaluate(tiny(), trained, data, samples=7)


def test_negative_elbo_equals_the_likelihood_bound_of_one_draw(folder: Path) -> None:
    data = open_data("mnist", folder, CPU)
    trained = fit(tiny(), data.train, fraction=1, seed=0, how=EAGER)
    elbo = evaluate(tiny(measure="neg_elbo"), trained, data, samples=200).got
    assert elbo > evaluate(tiny(), trained, data, samples=200).got
    assert elbo == pytest.approx(evaluate(tiny(), trained, data, samples=1).got, abs=1.5)


def test_mig_of_sprites_is_a_share(masks: Tensor) -> None:
    sprites_rows = Rows(masks, stride=2, rendered=sprites.ROWS)
    row = replace(find("small_vae"), steps=3, batch=16)
    trained = fit(row, sprites_rows, fraction=1, seed=0, how=EAGER)
    assert 0 <= mig(trained.model, sprites_rows) < 0.2


def test_results_keep_earlier_rows_and_replace_the_same_seed(tmp_path: Path) -> None:
    path, row = tmp_path / "kept" / "results.json", tiny(seeds=(0, 1))
    for seed, got in ((0, 90.0), (1, 87.0), (0, 88.0)):
        results.write(path, results.merged(results.read(path), row, 1.0, run(seed, got)))
    other = replace(tiny(), name="iwae_k5")
    results.write(path, results.merged(results.read(path), other, 0.01, run(0, 91.0)))
    found = results.read(path)
    assert found["vae_k1@1"]["got"] == 87.5
    assert [one["got"] for one in found["vae_k1@1"]["runs"]] == [88.0, 87.0]
    assert set(found) == {"vae_k1@1", "iwae_k5@0.01"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("got", "fraction", "published_data", "expected"),
    [
        (87.9, 1.0, True, "met"),
        (87.91, 1.0, True, "MISSED"),
        (80.0, 0.01, True, "not comparable: 0.01 of the schedule"),
        (80.0, 1.0, False, "not comparable: other data"),
    ],
)
def test_verdict_needs_the_whole_schedule_and_the_published_data(
    got: float, fraction: float, published_data: bool, expected: str
) -> None:
    runs = [{**run(0, got), "published_data": published_data}]
    assert results.verdict(find("vae_k1"), fraction, got, runs) == expected


def test_verdict_of_a_time_needs_a_gpu_of_a_likelihood_its_draws_and_of_a_median_its_seeds() -> None:
    assert results.verdict(find("vqvae_time"), 1, 100.0, [run(0, 100.0)]) == "not comparable: no GPU"
    on_gpu = {**run(0, 100.0), "hardware": "GPU X"}
    assert results.verdict(find("vqvae_time"), 1, 100.0, [on_gpu]) == "met"
    few = {**run(0, 80.0), "samples": 500}
    assert results.verdict(find("vae_k1"), 1, 80.0, [few]) == "not comparable: fewer than 5,000 draws"
    assert results.verdict(find("beta_tcvae_mig"), 1, 0.5, [run(0, 0.5)]) == "not comparable: 1 of 5 seeds"


def test_table_has_every_row_and_says_which_were_not_run_and_whether_the_order_holds() -> None:
    kept: results.Results = {}
    for name, got in zip(ORDERS[0], (90.0, 89.0, 89.5), strict=True):
        kept = results.merged(kept, find(name), 0.01, run(0, got))
    text = results.table(kept)
    assert all(f"| {row.name} |" in text for row in ROWS)
    assert "needs CIFAR-10: not run" in text
    assert "vae_k1 > iwae_k5 > iwae_k50: DOES NOT HOLD" in text
    assert "not comparable: 0.01 of the schedule" in text


def test_rows_state_their_source_and_those_of_likelihoods_their_binarisation() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.target.source
        if row.measure in ("nll", "neg_elbo") and not row.missing:
            assert "binarisation" in row.protocol, row.name


@pytest.mark.parametrize(("low", "high", "met"), [(None, 2.0, True), (2.5, None, False), (1.9, 2.1, True)])
def test_target_bounds(low: float | None, high: float | None, met: bool) -> None:
    assert Target(published="2", source="none", at_least=low, at_most=high).met_by(2.0) is met


def test_command_trains_a_fraction_writes_it_and_does_not_train_it_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tiny(steps=40)
    monkeypatch.setattr(reproduce, "find", lambda name: row)
    out = tmp_path / "results.json"
    command = ["vae_k1", "--data", str(folder), "--schedule", "0.1", "--out", str(out), "--eager", "--device", "cpu"]
    command += ["--checkpoints", str(tmp_path), "--samples", "5"]
    assert reproduce.main(command) == 0
    kept = json.loads(out.read_text(encoding="utf-8"))["rows"]["vae_k1@0.1"]
    assert kept["runs"][0]["steps"] == 4
    assert math.isfinite(kept["got"])
    assert kept["verdict"].startswith("not comparable")
    assert reproduce.main(command) == 0
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"), [("vqvae_cifar10", "needs CIFAR-10"), ("nothing", "no row"), ("vae_k1", "no such file")]
)
def test_row_that_cannot_be_run_says_why(
    row: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main([row, "--data", str(tmp_path), "--out", str(tmp_path / "x.json"), "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err


def test_command_needs_nothing_but_torch_numpy_and_safetensors() -> None:
    code = "import sys, bench.reproduce; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(found.stdout.split())
    assert {"bench", "vae_core", "torch"} <= imported
    assert not imported & {"pipeline", "ray", "dvc", "webdataset", "pyarrow", "pydantic", "sklearn", "PIL", "pandas"}


def run(seed: int, got: float) -> dict[str, object]:
    """What is kept of one training, as far as the table reads it."""
    return {
        "seed": seed,
        "got": got,
        "standard_error": 0.1,
        "samples": 5000,
        "steps": 100,
        "batch": 20,
        "seconds": 1.0,
        "published_data": True,
        "hardware": "CPU X, 1 thread",
    }
