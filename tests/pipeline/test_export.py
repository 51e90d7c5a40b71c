"""Artifacts: ONNX files with stable bytes that compute what torch computes, or nothing at all."""

import copy
import dataclasses
import getpass
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pipeline import files
from pipeline.closure import ROOT
from pipeline.config import EvaluateConfig, ExportConfig
from pipeline.data.loader import Split, open_split
from pipeline.errors import UserError
from pipeline.evaluate.metrics import evaluate_model
from pipeline.evaluate.models import open_model
from pipeline.export import artifacts
from pipeline.export.artifacts import export
from pipeline.export.onnx import Part, parts, run, write
from pipeline.export.parity import parity
from pipeline.kinds import KINDS
from vae_core.conditioning import Known
from vae_core.config import ModelConfig
from vae_core.config.priors import PixelCNNConfig
from vae_core.models import CodeModel, build_model
from vae_core.models.gaussian import GaussianModel
from vae_core.priors import build_prior
from vae_core.priors.files import describe_prior
from vae_core.serialize import CONFIG as CONFIG_FILE
from vae_core.serialize import WEIGHTS, dump_tensors, load_model

FAMILIES = ("autoencoder", "vae", "cvae", "iwae", "vqvae", "vqvae2", "categorical", "hierarchical")
QUANTISED = ("vqvae", "vqvae2")
INPUTS = {
    "autoencoder": ["z"], "vae": ["z"], "cvae": ["z", "labels"], "iwae": ["z"], "vqvae": ["codes_0"],
    "vqvae2": ["codes_0", "codes_1"], "categorical": ["codes_0"], "hierarchical": ["z"],
}  # fmt: skip
CONFIG = ExportConfig(parity_images=20, tolerance=1e-4)
EXPECTED = ["README.md", "config.json", "decoder.onnx", "encoder.onnx", "metrics.json", "model.safetensors"]


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    return open_split(shards, "test")


@pytest.fixture(scope="module")
def scores(published: Mapping[str, Path], split: Split) -> Mapping[str, Any]:
    config = EvaluateConfig(seed=0, batch_size=330, nll_samples=1, figure_images=1, probe_images=0)
    found = {
        family: evaluate_model(open_model(folder), split, split, config, prior=None, classifier=None, what=family)
        for family, folder in published.items()
    }
    return {family: {"baseline": {"test": {}}, "best": {"test": test}} for family, test in found.items()}


@pytest.fixture(scope="module")
def priors(published: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """What the prior stage leaves for each family. Not to be changed."""
    folder = tmp_path_factory.mktemp("priors")
    for family, model_folder in published.items():
        model, out = open_model(model_folder), folder / family
        out.mkdir()
        if family in QUANTISED and isinstance(model, CodeModel):
            prior = build_prior(PixelCNNConfig(channels=4, layers=1), model.grids, model.num_codes)
            (out / WEIGHTS).write_bytes(dump_tensors(prior.state_dict()))
            files.write_json(out / CONFIG_FILE, describe_prior(prior))
        files.write_json(out / "metrics.json", {"kind": "pixelcnn" if family in QUANTISED else "none"})
    return {family: folder / family for family in published}


@pytest.fixture(scope="module")
def exported(
    published: Mapping[str, Path], priors: Mapping[str, Path], scores: Mapping[str, Any], split: Split,
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, Path]:  # fmt: skip
    """The artifacts of each family. Not to be changed."""
    out = tmp_path_factory.mktemp("artifacts")
    for family in FAMILIES:
        export(family, published[family], priors[family], scores[family], split, CONFIG, out / family)
    return {family: out / family for family in FAMILIES}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inputs(split: Split, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary images that no export has seen, and labels."""
    images = torch.from_numpy(split.images(np.arange(100, 100 + count))).movedim(-1, 1)
    return (images > 127).float().contiguous(), torch.from_numpy(split.labels(np.arange(100, 100 + count)))


@pytest.mark.parametrize("family", FAMILIES)
def test_artifacts_are_complete(family: str, exported: Mapping[str, Path], published: Mapping[str, Path]) -> None:
    found = contents(exported[family])
    of_prior = ["prior.json", "prior.safetensors"] if family in QUANTISED else []
    assert sorted(found) == sorted(EXPECTED + of_prior)
    for name in ("config.json", "model.safetensors"):
        assert found[name] == (published[family] / name).read_bytes()
    assert load_model(exported[family]).config == load_model(published[family]).config


@pytest.mark.parametrize("family", QUANTISED)
def test_the_prior_goes_with_its_model(family: str, exported: Mapping[str, Path], priors: Mapping[str, Path]) -> None:
    for name, source in (("prior.safetensors", WEIGHTS), ("prior.json", CONFIG_FILE)):
        assert (exported[family] / name).read_bytes() == (priors[family] / source).read_bytes()


@pytest.mark.parametrize("family", ["cvae", "vqvae2"])
def test_a_second_export_gives_the_same_bytes(
    family: str, exported: Mapping[str, Path], published: Mapping[str, Path], priors: Mapping[str, Path],
    scores: Mapping[str, Any], split: Split, tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "elsewhere" / family
    export(family, published[family], priors[family], scores[family], split, CONFIG, out)
    assert contents(tmp_path / "elsewhere" / family) == contents(exported[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_tells_where_it_was_made(family: str, exported: Mapping[str, Path]) -> None:
    traces = [str(ROOT), str(exported[family].parent), str(Path.home()) + "/", "site-packages", ".py", "torch.nn"]
    for name, content in contents(exported[family]).items():
        assert [trace for trace in traces if trace.encode() in content] == [], name
        assert getpass.getuser().encode() + b"@" not in content


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_and_torch_agree_and_the_figures_say_so(family: str, exported: Mapping[str, Path]) -> None:
    agreement = files.read_json(exported[family] / "metrics.json")["parity"]
    assert agreement["images"] == 20
    encoder = "encoder_differing_codes_fraction" if "codes_0" in INPUTS[family] else "encoder_max_abs_difference"
    assert set(agreement) == {encoder, "decoder_max_abs_difference", "images"}
    assert all(0 <= agreement[name] < 1e-5 for name in agreement if name != "images")
    for part in ("encoder", "decoder"):
        onnx.checker.check_model(str(exported[family] / f"{part}.onnx"), full_check=True)
    graph = onnx.load(str(exported[family] / "decoder.onnx")).graph
    assert [each.name for each in graph.input] == INPUTS[family]
    assert [each.name for each in graph.output] == ["pixel_mean"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 7])
def test_onnx_runs_with_any_batch_size(family: str, count: int, exported: Mapping[str, Path], split: Split) -> None:
    model, (x, labels) = load_model(exported[family]), inputs(split, count)
    given = {"labels": labels} if family == "cvae" else {}
    outputs = run(exported[family] / "encoder.onnx", {"x": x, **given})
    with torch.no_grad():
        c = model.condition(Known(labels=labels))
        latent = model.represent(x, c)
        decoded = model.decode(latent, c).mean
    if isinstance(model, GaussianModel):
        posterior = model.encode(x, c)
        torch.testing.assert_close(outputs, [posterior.mean, posterior.log_var], rtol=0, atol=1e-5)
    elif isinstance(latent, torch.Tensor):
        torch.testing.assert_close(outputs, [latent], rtol=0, atol=1e-5)
    else:
        assert len(outputs) == len(latent)
        assert all(one.equal(other) for one, other in zip(outputs, latent, strict=True))
    levels = [latent] if isinstance(latent, torch.Tensor) else [*latent]
    known = dict(zip(INPUTS[family], [*levels, *given.values()], strict=True))
    (pixels,) = run(exported[family] / "decoder.onnx", known)
    assert pixels.shape == (count, 1, 8, 8)
    torch.testing.assert_close(pixels, decoded, rtol=0, atol=1e-5)


def other_weights(part: Part, path: Path) -> None:
    """Write a model that is not the one to be exported."""
    module = copy.deepcopy(part.module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01
    write(Part(module, part.inputs, part.outputs), path)


@pytest.mark.parametrize("before", [False, True], ids=["first export", "export before"])
def test_a_file_that_computes_something_else_is_not_exported(
    before: bool, published: Mapping[str, Path], priors: Mapping[str, Path], scores: Mapping[str, Any], split: Split,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "artifacts" / "vae"
    if before:
        out.mkdir(parents=True)
        (out / "decoder.onnx").write_text("of the export before")
    monkeypatch.setattr(artifacts, "write", other_weights)
    with pytest.raises(
        UserError, match=r"^encoder.onnx: differs .* encoder_max_abs_difference \S+, allowed is 0.0001 "
    ):
        export("vae", published["vae"], priors["vae"], scores["vae"], split, CONFIG, out)
    assert [path.name for path in out.parent.iterdir()] == (["vae"] if before else [])
    assert not before or contents(out) == {"decoder.onnx": b"of the export before"}


def test_codes_that_differ_beyond_a_tie_are_not_exported(
    published: Mapping[str, Path], priors: Mapping[str, Path], scores: Mapping[str, Any], split: Split, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def other_codes(part: Part, path: Path) -> None:
        module = copy.deepcopy(part.module)
        module.model.quantizer.codebook.copy_(module.model.quantizer.codebook.roll(1, 0))
        write(Part(module, part.inputs, part.outputs), path)

    monkeypatch.setattr(artifacts, "write", other_codes)
    with pytest.raises(UserError, match=r"^encoder.onnx: .* encoder_differing_codes_fraction \S+, allowed is 0.001 "):
        export("vqvae", published["vqvae"], priors["vqvae"], scores["vqvae"], split, CONFIG, tmp_path / "vqvae")


@pytest.mark.parametrize(("codes", "allowed"), [(1, True), (2, False)])
def test_one_code_in_a_thousand_may_fall_either_way(
    codes: int, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(path: Path, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        changed = given["x"].clone()
        changed.view(-1)[:codes] += 1
        return [changed]

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    parts = {"encoder": Part(Same(), {"x": torch.zeros(250, 2, 2, dtype=torch.int64)}, ("codes_0",))}
    monkeypatch.setattr("pipeline.export.parity.run", other)
    if allowed:
        found = {"encoder_differing_codes_fraction": 0.001, "images": 250}
        assert parity(parts, tmp_path, tolerance=1e-9) == found
        return
    with pytest.raises(UserError, match=r"encoder_differing_codes_fraction 0.002, allowed is 0.001 "):
        parity(parts, tmp_path, tolerance=1e-9)


@pytest.mark.parametrize(
    ("family", "condition"),
    [("vqvae2", "label"), ("categorical", "label"), ("vae", "attributes"), ("hierarchical", "attributes")],
)
def test_a_conditional_model_takes_its_column_as_it_lies_in_the_data(
    family: str, condition: str, models: Mapping[str, ModelConfig], split: Split, squares: Path, tmp_path: Path
) -> None:
    data = split if condition == "label" else open_split(squares, "test")
    model = build_model(dataclasses.replace(models[family], condition=condition), data.spec).eval()
    batch = data.batch(np.arange(9))
    with torch.no_grad():
        exported = parts(model, (batch.images > 127).float(), batch)
    column = {"label": "labels", "attributes": "attributes"}[condition]
    for name, part in exported.items():
        assert list(part.inputs)[-1] == column
        write(part, tmp_path / f"{name}.onnx")
    assert parity(exported, tmp_path, tolerance=1e-5)["images"] == 9
    other = {**exported["decoder"].inputs, column: exported["decoder"].inputs[column].roll(1, 0)}
    for name, is_same in ((exported["decoder"].inputs, True), (other, False)):
        (pixels,) = run(tmp_path / "decoder.onnx", name)
        decoded = exported["decoder"].module(*exported["decoder"].inputs.values())
        assert torch.allclose(pixels, decoded, atol=1e-5) is is_same


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_tells_every_figure_and_the_lineage(
    family: str, exported: Mapping[str, Path], scores: Mapping[str, Any]
) -> None:
    card = (exported[family] / "README.md").read_text()
    for name, value in scores[family]["best"]["test"].items():
        assert f"| {name} | {value} |" in card
    for name, value in files.read_json(exported[family] / "config.json")["lineage"].items():
        assert f"| {name} | {value} |" in card
    assert "digits" in card
    assert "1,163 rows of training data" in card
    assert "330 images" in card
    assert ("`labels` is the column of the data." in card) is (family == "cvae")
    assert ("Codes are int64 grids" in card) is ("codes_0" in INPUTS[family])
    assert ("conditioned on the label" in card) is (family == "cvae")
    assert ("dynamic binarisation" in card) is (family not in QUANTISED)
    assert card.startswith(f"# {family}\n\n{KINDS[load_model(exported[family]).config.kind]} with ")
    assert f"decoder.onnx | {', '.join(INPUTS[family])} to pixel_mean |" in card
    for name, value in files.read_json(exported[family] / "metrics.json")["parity"].items():
        assert name == "images" or f"{name} {value:.1e}" in card
    assert "{" not in card
    assert "\n\n\n\n" not in card
    for path in exported[family].iterdir():
        assert path.name in card or path.name == "README.md"


def test_fewer_images_than_asked_for_are_all_compared(
    published: Mapping[str, Path], priors: Mapping[str, Path], scores: Mapping[str, Any], split: Split, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, exported: Mapping[str, Path],
) -> None:  # fmt: skip
    write_again: Callable[[Part, Path], object] = lambda _, path: path.write_bytes(  # noqa: E731
        (exported["vae"] / path.name).read_bytes()
    )
    monkeypatch.setattr(artifacts, "write", write_again)
    config = ExportConfig(parity_images=10_000, tolerance=1e-4)
    export("vae", published["vae"], priors["vae"], scores["vae"], split, config, tmp_path / "vae")
    assert files.read_json(tmp_path / "vae" / "metrics.json")["parity"]["images"] == 330
