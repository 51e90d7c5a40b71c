"""encode, decode, sample, interpolate, traverse, transfer, nearest: what they leave, and what they refuse."""

import io
import json
import shutil
import wave
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline import files
from pipeline.__main__ import main
from pipeline.config import Params, PriorConfig, load_params
from pipeline.data.config import DataConfig, NumpySource, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.loader import open_split
from pipeline.data.shards import write_here
from pipeline.data.sources.numpy_arrays import open_numpy
from pipeline.evaluate.models import open_model
from pipeline.operate import _shown, encode, nearest, sample
from pipeline.operate.interpolate import between
from pipeline.prior.train import PriorRun
from vae_core.conditioning import Known
from vae_core.config import AutoencoderConfig, CategoricalConfig, DataSpec, MLPConfig, ModelConfig, VAEConfig
from vae_core.config.priors import PixelCNNConfig
from vae_core.models import CodeModel, build_model
from vae_core.models.gaussian import GaussianModel
from vae_core.priors.files import describe_prior
from vae_core.sampling import interpolate, reconstruct
from vae_core.sampling import sample as draw
from vae_core.serialize import CONFIG, WEIGHTS, describe, dump_tensors

Run = Callable[..., str]
CVAE = """\
  cvae:
    kind: vae
    latent_dim: 4
    condition: label
    network: {kind: mlp, hidden: [32]}
"""
ROWS = 330  # of the test split


@pytest.fixture
def project(
    published: Mapping[str, Path], shards: Path, tmp_path: Path, params_text: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project's folder with params.yaml, shards and best models, as working directory."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for family, directory in published.items():
        shutil.copytree(directory, tmp_path / "models" / family / "best")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(shards)
    text = params_text.replace("families: [vae, vqvae]", "families: [vae, cvae, vqvae]")
    text = text.replace("  vqvae:\n    kind", f"{CVAE}  vqvae:\n    kind").replace(
        "    vqvae: {}", "    vqvae: {}\n    cvae: {}"
    )
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(project: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must succeed; its output."""

    def go(*argv: object) -> str:
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        shown = capsys.readouterr()
        assert status == 0, shown.err
        return shown.out

    return go


@pytest.fixture
def refused(project: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must be refused; its message."""

    def go(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(arg) for arg in argv]) == 1
        return capsys.readouterr().err

    return go


def trained_and_params(family: str) -> tuple[_shown.Trained, Params]:
    params = load_params()
    return _shown.open_trained(params, Namespace(family=family, model="best")), params


def whole(family: str, split: str = "test") -> list[tuple[Tensor, Tensor | None]]:
    """The observed pixels and conditions of a split, batch by batch."""
    trained, params = trained_and_params(family)
    opened = _shown.open_data(params, trained, split)
    return [(x, c) for _, x, c in _shown.seen(trained, opened, params.evaluate, "test")]


def lists(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return np.stack(column.to_numpy(zero_copy_only=False))


def put(project: Path, family: str, config: ModelConfig, data: DataSpec) -> None:
    """A model as it was initialised, in the place of a family's best."""
    directory = project / "models" / family / "best"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / WEIGHTS).write_bytes(dump_tensors(build_model(config, data).state_dict()))
    files.write_json(directory / CONFIG, describe(config, data))


def put_prior(project: Path) -> None:
    """A prior over the codes of vqvae, as it was initialised."""
    model = open_model(project / "models/vqvae/best")
    assert isinstance(model, CodeModel)
    config = PriorConfig(network=PixelCNNConfig(channels=8, layers=2))
    built = PriorRun.of(config, model, project / "models/vqvae/best", "data")
    out, prior = project / "models/vqvae/prior", built.build()
    out.mkdir()
    (out / WEIGHTS).write_bytes(dump_tensors(prior.state_dict()))
    files.write_json(out / CONFIG, {**describe_prior(prior), "lineage": built.lineage})
    files.write_json(out / "metrics.json", {"kind": "pixelcnn"})


@pytest.mark.parametrize("family", ["vae", "cvae", "vqvae"])
def test_what_is_encoded_and_decoded_is_the_models_reconstruction(run: Run, project: Path, family: str) -> None:
    run("encode", "--family", family)
    run("decode", f"{family}-test.parquet", "--family", family)
    model = open_model(project / "models" / family / "best")
    expected = torch.cat([reconstruct(model, x, c) for x, c in whole(family)])
    decoded = np.load(project / f"{family}-test.npy", allow_pickle=False)
    assert (decoded.dtype, decoded.shape) == (np.uint8, (ROWS, 8, 8, 1))
    np.testing.assert_array_equal(decoded, (expected * 255).round().to(torch.uint8).movedim(1, -1).numpy())
    assert sorted(path.name for path in project.iterdir() if path.suffix == ".tmp") == []


def test_the_table_holds_ids_labels_latents_and_which_model_wrote_them(run: Run, project: Path, shards: Path) -> None:
    run("encode", "--family", "vae", "--log-var", "--out", "table.parquet")
    table, test = pq.read_table(project / "table.parquet"), open_split(shards, "test")
    rows = np.arange(ROWS)
    assert table.column_names == ["id", "split", "label", "latent", "log_var"]
    assert table["id"].to_pylist() == test.ids(rows)
    assert table["label"].to_pylist() == test.labels(rows).tolist()
    assert set(table["split"].to_pylist()) == {"test"}
    assert table.schema.field("latent").type == pa.list_(pa.float32(), 4)
    model = open_model(project / "models/vae/best")
    assert isinstance(model, GaussianModel)
    with torch.no_grad():
        posteriors = [model.encode(x, c) for x, c in whole("vae")]
    np.testing.assert_array_equal(lists(table, "latent"), torch.cat([q.mean for q in posteriors]).numpy())
    np.testing.assert_array_equal(lists(table, "log_var"), torch.cat([q.log_var for q in posteriors]).numpy())
    written = json.loads(table.schema.metadata[encode.METADATA])
    config = files.read_json(project / "models/vae/best" / CONFIG)
    assert (written["model"], written["lineage"]) == (config["model"], config["lineage"])
    assert (written["rows"], written["latent_dim"]) == ({"test": ROWS}, 4)


def test_codes_are_those_of_the_model(run: Run, project: Path) -> None:
    run("encode", "--family", "vqvae")
    table = pq.read_table(project / "vqvae-test.parquet")
    model = open_model(project / "models/vqvae/best")
    with torch.no_grad():
        expected = torch.cat([model.represent(x, c)[0] for x, c in whole("vqvae")])
    assert table.schema.field("codes_0").type == pa.list_(pa.int32(), 4)
    np.testing.assert_array_equal(lists(table, "codes_0"), expected.flatten(1).numpy())
    written = json.loads(table.schema.metadata[encode.METADATA])
    assert (written["grids"], written["num_codes"]) == ([[2, 2]], 16)


def test_every_split_in_row_groups_and_each_as_if_alone(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "GROUP_ROWS", 200)
    run("encode", "--family", "vae", "--split", "all", "--out", "all.parquet")
    run("encode", "--family", "vae", "--split", "val")
    table, val = pq.read_table("all.parquet"), pq.read_table("vae-val.parquet")
    counts = {split: table["split"].to_pylist().count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 1163, "val": 304, "test": 330}
    assert table.slice(1163, 304).equals(val)
    groups = pq.ParquetFile("all.parquet").metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= 300


def test_the_same_command_gives_the_same_bytes(run: Run, project: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)  # which nothing may read
        run("encode", "--family", "vae", "--out", f"{name}.parquet")
        run("sample", "--family", "vae", "--out", f"{name}.png")
    assert (project / "one.parquet").read_bytes() == (project / "two.parquet").read_bytes()
    assert (project / "one.png").read_bytes() == (project / "two.png").read_bytes()


def test_an_image_alone_is_seen_as_in_the_whole_split(project: Path) -> None:
    trained, params = trained_and_params("vae")
    everything = torch.cat([x for x, _ in whole("vae")])
    for row in (0, 99, 100, 329):  # batches of 100, the last one short
        image = _shown.look_up(params, trained, str(row), "--image")
        assert (image.split, image.row) == ("test", row)
        torch.testing.assert_close(image.x[0], everything[row], rtol=0, atol=0)
        again = _shown.look_up(params, trained, image.id, "--image")
        assert (again.split, again.row, again.id) == ("test", row, image.id)


def test_a_table_of_another_model_is_refused_unless_forced(
    run: Run, refused: Run, project: Path, published: Mapping[str, Path]
) -> None:
    run("encode", "--family", "vae", "--out", "table.parquet")
    assert "was written by vae" in refused("decode", "table.parquet", "--family", "cvae")
    other = open_model(published["vae"])
    put(project, "vae", replace(other.config), other.data)
    message = refused("decode", "table.parquet", "--family", "vae")
    assert "table.parquet: was written by vae" in message
    assert "models/vae/best" in message
    assert "--force" in message
    assert not (project / "table.npy").exists()
    run("decode", "table.parquet", "--family", "vae", "--force", "--rows", 3)
    assert np.load(project / "table.npy", allow_pickle=False).shape == (3, 8, 8, 1)


def test_a_table_that_was_changed_is_refused_with_the_column(run: Run, refused: Run, project: Path) -> None:
    run("encode", "--family", "vqvae", "--out", "table.parquet")
    table = pq.read_table("table.parquet")
    lines = {
        "codes_0": (pa.array([[0, 0, 0, 16]] * ROWS, pa.list_(pa.int32(), 4)), "whole numbers from 0 to 15"),
        "short": (pa.array([[0, 0, 0]] * ROWS, pa.list_(pa.int32())), "expected 4 numbers in each row"),
    }
    for values, message in lines.values():
        changed = table.set_column(table.column_names.index("codes_0"), "codes_0", values)
        pq.write_table(changed, "changed.parquet")
        assert message in refused("decode", "changed.parquet", "--family", "vqvae")
    pq.write_table(table.drop_columns(["codes_0"]), "changed.parquet")
    assert "no column 'codes_0'" in refused("decode", "changed.parquet", "--family", "vqvae")
    pq.write_table(table.replace_schema_metadata(None), "changed.parquet")
    assert "does not say which model wrote it" in refused("decode", "changed.parquet", "--family", "vqvae")
    (project / "changed.parquet").write_bytes(b"PAR1 no PAR1")
    assert "changed.parquet: damaged" in refused("decode", "changed.parquet", "--family", "vqvae")
    assert "no such file; write it with" in refused("decode", "none.parquet", "--family", "vqvae")


def test_the_label_of_a_conditional_model_comes_from_the_table(run: Run, refused: Run, project: Path) -> None:
    run("encode", "--family", "cvae", "--out", "table.parquet")
    run("decode", "table.parquet", "--family", "cvae", "--out", "own.npy")
    table = pq.read_table("table.parquet")
    pq.write_table(table.set_column(2, "label", pa.array([3] * ROWS)), "three.parquet")
    run("decode", "three.parquet", "--family", "cvae", "--out", "three.npy")
    assert (np.load("own.npy") != np.load("three.npy")).any()
    pq.write_table(table.set_column(2, "label", pa.array([10] * ROWS)), "ten.parquet")
    assert "column 'label': expected whole numbers from 0 to 9" in refused("decode", "ten.parquet", "--family", "cvae")
    pq.write_table(table.drop_columns(["label"]), "none.parquet")
    assert "no column 'label'" in refused("decode", "none.parquet", "--family", "cvae")


def test_decoded_images_as_a_folder_and_as_a_picture(run: Run, refused: Run, project: Path) -> None:
    run("encode", "--family", "vqvae", "--out", "table.parquet")
    run("decode", "table.parquet", "--family", "vqvae", "--out", "folder")
    run("decode", "table.parquet", "--family", "vqvae", "--rows", 12, "--out", "sheet.png")
    assert sorted(path.name for path in (project / "folder").iterdir()) == ["images.npy", "images.png"]
    assert np.load(project / "folder/images.npy").shape == (ROWS, 8, 8, 1)
    with Image.open(project / "sheet.png") as picture:
        assert picture.width > picture.height  # two rows of ten
    assert "is there already" in refused("decode", "table.parquet", "--family", "vqvae", "--out", "folder")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["encode", "--family", "vea"], "--family vea: not under `families` in params.yaml; did you mean 'vae'?"),
        (
            ["encode", "--family", "vae", "--model", "baseline"],
            "models/vae/baseline: no such model; make it with `dvc repro train@vae`, or restore it with `dvc checkout`",
        ),
        (["encode", "--family", "vqvae", "--log-var"], "--log-var: vqvae has no Gaussian posterior (kind: vqvae)"),
        (["encode", "--family", "vae", "--out", "x.csv"], "--out x.csv: expected a name that ends in .parquet"),
        (["sample", "--family", "vae", "--label", "3"], "--label: vae is not conditioned on labels (condition: none)"),
        (["sample", "--family", "cvae", "--label", "10"], "--label 10: cvae knows the labels 0 to 9"),
        (["sample", "--family", "cvae", "--labels", "1,12"], "--labels 12: cvae knows the labels 0 to 9"),
        (["sample", "--family", "cvae", "--like", "0"], "--like: cvae is not conditioned on attributes"),
        (["sample", "--family", "vqvae"], "models/vqvae/prior: no prior over the codes of vqvae; train it with `dvc"),
        (["sample", "--family", "vae", "--count", "401"], "at most 400 images, not 401; name an .npy"),
        (["sample", "--family", "vae", "--out", "x.gif"], "--out x.gif: expected a name that ends in .png or .npy"),
        (["traverse", "--family", "vqvae", "--image", "0"], "--family vqvae: its latents are codes"),
        (["traverse", "--family", "vae", "--image", "0", "--dims", "1,4"], "--dims 4: vae has the dimensions 0 to 3"),
        (["transfer", "--family", "vae", "--image", "0"], "--family vae: not conditioned on labels"),
        (["nearest", "--family", "vae", "--image", "330"], "--image 330: neither an id in data/shards/index.parquet"),
        (["nearest", "--family", "vae", "--image", "0", "--out", "x.jpg"], "expected a name that ends in .png"),
        (
            ["interpolate", "--family", "vqvae", "--from", "0", "--to", "1", "--spherical"],
            "--spherical: vqvae has codes",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(refused: Run, argv: list[str], message: str) -> None:
    found = refused(*argv)
    assert found.startswith("error: ")
    assert message in found
    assert found.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--family", "vae", "--temperature", "0"],
        ["sample", "--family", "vae", "--temperature", "nan"],
        ["sample", "--family", "vae", "--count", "0"],
        ["sample", "--family", "cvae", "--label", "1", "--labels", "2"],
        ["interpolate", "--family", "vae", "--from", "0"],
        ["interpolate", "--family", "vae", "--from", "0", "--to", "1", "--steps", "1"],
        ["traverse", "--family", "vae", "--image", "0", "--dims", "a"],
        ["encode"],
    ],
)
def test_wrong_usage_exits_2(project: Path, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


@pytest.mark.parametrize("command", ["encode", "decode", "sample", "interpolate", "traverse", "transfer", "nearest"])
def test_the_help_shows_examples_that_parse(
    project: Path, capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    examples = [line.split()[4:] for line in shown.splitlines() if line.startswith(f"  python -m pipeline {command} ")]
    assert len(examples) >= 2
    module = f"pipeline.operate.{command}.main"
    asked: list[Namespace] = []
    monkeypatch.setattr(module, lambda params, args: asked.append(args))
    for example in examples:
        assert main([command, *example]) == 0
    assert len(asked) == len(examples)


def test_samples_follow_seed_temperature_and_count(run: Run, project: Path) -> None:
    def drawn(*argv: object) -> np.ndarray:
        run("sample", "--family", "vae", "--out", "x.npy", *argv)
        return np.load(project / "x.npy", allow_pickle=False)

    one = drawn("--count", 250, "--seed", 1)
    assert (one.dtype, one.shape) == (np.uint8, (250, 8, 8, 1))
    np.testing.assert_array_equal(one, drawn("--count", 250, "--seed", 1))
    assert (one != drawn("--count", 250, "--seed", 2)).any()
    assert not (one[:50] == one[100:150]).all()  # the second batch is no copy of the first
    assert drawn("--temperature", 0.01).std(0).mean() < drawn().std(0).mean() / 5
    assert set(np.unique(drawn("--draw"))) == {0, 255}


def test_samples_of_classes_are_those_of_the_condition(run: Run, project: Path) -> None:
    run("sample", "--family", "cvae", "--labels", "7,2", "--count", 3, "--out", "x.npy")
    trained, _ = trained_and_params("cvae")
    c = trained.model.condition(Known(labels=torch.tensor([7, 7, 7, 2, 2, 2])))
    pixels = _saved_bytes(draw(trained.model, 6, c, seed=0))
    np.testing.assert_array_equal(np.load(project / "x.npy"), pixels)
    run("sample", "--family", "cvae")
    with Image.open(project / "sample.png") as picture:
        assert min(picture.size) > 500  # ten classes


def _saved_bytes(mean: Tensor) -> np.ndarray:
    return (mean * 255).round().to(torch.uint8).movedim(1, -1).numpy()


def test_codes_are_sampled_from_the_prior_of_their_own_model(
    run: Run, refused: Run, project: Path, published: Mapping[str, Path]
) -> None:
    put_prior(project)
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run("sample", "--family", "vqvae", "--count", 5, "--seed", seed, "--out", f"{name}.npy")
    one, two, other = (np.load(project / f"{name}.npy") for name in ("one", "two", "other"))
    assert one.shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    model = open_model(published["vqvae"])
    put(project, "vqvae", model.config, model.data)
    message = refused("sample", "--family", "vqvae", "--out", "x.npy")
    assert "models/vqvae/prior: learned from the codes of the model" in message
    assert "dvc repro prior@vqvae" in message


def test_a_uniform_prior_has_no_temperature(run: Run, refused: Run, project: Path) -> None:
    network = MLPConfig(kind="mlp", hidden=(8,))
    config = CategoricalConfig(kind="categorical", variables=3, categories=4, estimator="gumbel", network=network)
    put(project, "vae", config, DataSpec(channels=1, height=8, width=8, num_classes=10))
    run("sample", "--family", "vae", "--count", 4, "--out", "x.npy")
    assert np.load(project / "x.npy").shape == (4, 8, 8, 1)
    assert "--temperature: the prior of vae is uniform" in refused("sample", "--family", "vae", "--temperature", "2")


def test_a_model_without_a_prior_draws_nothing(refused: Run, project: Path) -> None:
    config = AutoencoderConfig(kind="autoencoder", latent_dim=3, network=MLPConfig(kind="mlp", hidden=(8,)))
    put(project, "vae", config, DataSpec(channels=1, height=8, width=8, num_classes=10))
    assert "a model of kind autoencoder has no prior to draw from" in refused("sample", "--family", "vae")


@pytest.mark.parametrize("family", ["vae", "cvae", "vqvae"])
def test_a_path_leads_from_one_reconstruction_to_the_other(run: Run, project: Path, family: str) -> None:
    trained, params = trained_and_params(family)
    start, end = (_shown.look_up(params, trained, row, "--from") for row in ("0", "1"))
    assert start.label != end.label
    path = between(trained, start, end, 5)
    assert path.shape == (5, 1, 8, 8)
    torch.testing.assert_close(path[0], reconstruct(trained.model, start.x, start.c)[0])
    torch.testing.assert_close(path[-1], reconstruct(trained.model, end.x, end.c)[0])
    if family == "vae":
        torch.testing.assert_close(path, interpolate(trained.model, start.x, end.x, 5)[0])
        assert (between(trained, start, end, 5, "spherical")[2] != path[2]).any()
    run("interpolate", "--family", family, "--from", 0, "--to", end.id, "--steps", 5)
    assert (project / "interpolate.png").exists()


def test_pictures_of_traversal_and_transfer(run: Run, project: Path) -> None:
    run("traverse", "--family", "vae", "--image", 0)
    run("traverse", "--family", "vae", "--image", 0, "--dims", "2", "--out", "one.png")
    run("transfer", "--family", "cvae", "--image", 0)
    run("transfer", "--family", "cvae", "--image", 0, "--label", 7, "--out", "seven.png")
    with Image.open(project / "traverse.png") as every, Image.open(project / "one.png") as one:
        assert every.height > one.height
    with Image.open(project / "transfer.png") as every, Image.open(project / "seven.png") as seven:
        assert every.width > seven.width
    assert run("traverse", "--family", "vae", "--image", 0, "--out", "again.png") == "again.png\n"
    assert (project / "again.png").read_bytes() == (project / "traverse.png").read_bytes()


@pytest.mark.parametrize("family", ["vae", "vqvae"])
def test_the_nearest_are_those_of_the_whole_training_split(run: Run, project: Path, family: str) -> None:
    trained, params = trained_and_params(family)
    train = _shown.open_data(params, trained, "train")
    image = _shown.look_up(params, trained, train.ids(np.array([417]))[0], "--image")
    assert (image.split, image.row) == ("train", 417)
    found = nearest.nearest(params, trained, image, train, 20)
    with torch.no_grad():
        latents = [trained.model.represent(x, c) for x, c in whole(family, "train")]
        own = trained.model.represent(image.x, image.c)
    if family == "vae":
        distances = np.sqrt(((torch.cat(latents) - own).double().numpy() ** 2).sum(1))
    else:
        distances = (torch.cat([codes[0] for codes in latents]) != own[0]).flatten(1).sum(1).numpy()
    expected = [int(row) for row in np.argsort(distances, kind="stable") if row != 417][:20]
    assert found.rows.tolist() == expected
    np.testing.assert_allclose(found.distances.numpy(), distances[expected], rtol=1e-5)
    printed = run("nearest", "--family", family, "--image", image.id, "--count", 12).splitlines()
    assert [line.split()[2] for line in printed[:12]] == train.ids(np.array(expected[:12]))
    assert printed[12:] == ["nearest.png"]


@pytest.fixture
def sound(project: Path, params_text: str, tmp_path: Path) -> Path:
    """Sound with two attributes each, and a model of it that is conditioned on them."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (60, 1, 32, 1), dtype=np.uint8)
    np.savez(tmp_path / "sound.npz", images=values, attributes=rng.normal(size=(60, 2)).astype(np.float32))
    source = NumpySource(kind="npz", path=str(tmp_path / "sound.npz"), images="images", attributes="attributes")
    config = DataConfig(source=source, validation_fraction=0.2, test_fraction=0.3, max_bad_fraction=0.0)
    prepare([open_numpy(source, None, tmp_path)], config, tmp_path / "other")
    (project / "data/shards").unlink()
    write_here(tmp_path / "other", ShardConfig(seed=0, shard_bytes=400_000)).rename(project / "data/shards")
    text = (project / "params.yaml").read_text()
    wav = "{kind: wav, path: clips, sample_rate: 8000, segment: 32}"
    (project / "params.yaml").write_text(text.replace("{kind: digits}", wav))
    network = MLPConfig(kind="mlp", hidden=(8,))
    model = VAEConfig(kind="vae", latent_dim=3, likelihood="gaussian", condition="attributes", network=network)
    put(project, "vae", model, DataSpec(channels=1, height=1, width=32, attributes=2))
    return project


def test_sound_becomes_wav_files_with_its_attributes(run: Run, refused: Run, sound: Path) -> None:
    run("encode", "--family", "vae", "--out", "table.parquet")
    table = pq.read_table("table.parquet")
    assert table.column_names == ["id", "split", "latent", "attributes"]
    run("decode", "table.parquet", "--family", "vae", "--out", "folder")
    clips = sorted((sound / "folder").glob("*.wav"))
    assert len(clips) == len(table)
    with wave.open(io.BytesIO(clips[0].read_bytes())) as clip:
        assert (clip.getframerate(), clip.getnframes(), clip.getnchannels()) == (8000, 32, 1)
        heard = np.frombuffer(clip.readframes(32), "<i2") / 32767
    values = np.load(sound / "folder/images.npy")[0, 0, :, 0] / 127.5 - 1
    companded = np.sign(heard) * np.log1p(255 * np.abs(heard)) / np.log(256)
    np.testing.assert_allclose(companded, values, atol=0.02)
    assert "--like: vae is conditioned on attributes" in refused("sample", "--family", "vae")
    run("sample", "--family", "vae", "--like", 0, "--count", 2, "--out", "drawn")
    assert sorted(path.name for path in (sound / "drawn").iterdir()) == ["00000000.wav", "00000001.wav"]


def test_sound_is_drawn_as_curves(run: Run, sound: Path) -> None:
    run("sample", "--family", "vae", "--like", 0, "--count", 7)
    run("interpolate", "--family", "vae", "--from", 0, "--to", 1, "--steps", 4)
    run("traverse", "--family", "vae", "--image", 0)
    run("nearest", "--family", "vae", "--image", 0, "--count", 7)
    names = [f"{name}.png" for name in ("sample", "interpolate", "traverse", "nearest")]
    assert all((sound / name).stat().st_size > 1000 for name in names)


def test_data_of_another_size_are_refused(sound: Path, refused: Run) -> None:
    message = refused("encode", "--family", "cvae")
    assert "data/shards: expected height 8, which cvae was trained on, found 1" in message


def test_an_interrupted_encode_leaves_the_old_table(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("encode", "--family", "vae", "--out", "table.parquet")
    before, calls = (project / "table.parquet").read_bytes(), [0]
    whole_parts = encode.parts

    def breaks(*args: Any, **keywords: Any) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return whole_parts(*args, **keywords)

    monkeypatch.setattr(encode, "parts", breaks)
    assert main(["encode", "--family", "vae", "--out", "table.parquet"]) == 130
    assert (project / "table.parquet").read_bytes() == before
    assert [path.name for path in project.iterdir() if path.name.endswith(".tmp")] == []


def test_the_second_batch_of_a_seed_is_not_the_first_of_the_next() -> None:
    assert len({sample._seed(seed, start) for seed in range(20) for start in (0, 100, 200)}) == 60
