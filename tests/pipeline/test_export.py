"""Artifacts: ONNX files with stable bytes that compute what torch computes, or nothing at all."""

import copy
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
from pipeline.export.onnx import Part, run, write
from vae_core.models.vqvae import VQVAE
from vae_core.serialize import load_model

FAMILIES = ("vae", "cvae", "vqvae")
CONFIG = ExportConfig(parity_images=20, tolerance=1e-4)
EXPECTED = ["README.md", "config.json", "decoder.onnx", "encoder.onnx", "metrics.json", "model.safetensors"]


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    return open_split(shards, "test")


@pytest.fixture(scope="module")
def scores(published: Mapping[str, Path], split: Split) -> Mapping[str, Any]:
    config = EvaluateConfig(seed=0, batch_size=330, nll_samples=1, figure_images=1)
    found = {f: evaluate_model(open_model(folder), split, config, what=f) for f, folder in published.items()}
    return {family: {"baseline": {"test": {}}, "best": {"test": test}} for family, test in found.items()}


@pytest.fixture(scope="module")
def exported(
    published: Mapping[str, Path], scores: Mapping[str, Any], split: Split, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """The artifacts of each family. Not to be changed."""
    out = tmp_path_factory.mktemp("artifacts")
    for family in FAMILIES:
        export(family, published[family], scores[family], split, CONFIG, out / family)
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
    assert sorted(found) == EXPECTED
    for name in ("config.json", "model.safetensors"):
        assert found[name] == (published[family] / name).read_bytes()
    assert load_model(exported[family]).config == load_model(published[family]).config


@pytest.mark.parametrize("family", ["cvae", "vqvae"])
def test_a_second_export_gives_the_same_bytes(
    family: str, exported: Mapping[str, Path], published: Mapping[str, Path], scores: Mapping[str, Any],
    split: Split, tmp_path: Path,
) -> None:  # fmt: skip
    export(family, published[family], scores[family], split, CONFIG, tmp_path / "elsewhere" / family)
    assert contents(tmp_path / "elsewhere" / family) == contents(exported[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_tells_where_it_was_made(family: str, exported: Mapping[str, Path]) -> None:
    traces = [str(ROOT), str(exported[family].parent), str(Path.home()) + "/", "site-packages", ".py", "torch.nn"]
    for name, content in contents(exported[family]).items():
        assert [trace for trace in traces if trace.encode() in content] == [], name
        assert getpass.getuser().encode() + b"@" not in content


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_and_torch_agree_and_the_figures_say_so(family: str, exported: Mapping[str, Path]) -> None:
    parity = files.read_json(exported[family] / "metrics.json")["parity"]
    assert parity["images"] == 20
    for part in ("encoder", "decoder"):
        onnx.checker.check_model(str(exported[family] / f"{part}.onnx"), full_check=True)
        assert 0 <= parity[f"{part}_max_abs_difference"] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 7])
def test_onnx_runs_with_any_batch_size(family: str, count: int, exported: Mapping[str, Path], split: Split) -> None:
    model, (x, labels) = load_model(exported[family]), inputs(split, count)
    condition = {"labels": labels} if family == "cvae" else {}
    outputs = run(exported[family] / "encoder.onnx", {"x": x, **condition})
    with torch.no_grad():
        if isinstance(model, VQVAE):
            encoded = model.encode(x)
            codes = model.quantizer.nearest(encoded)
            torch.testing.assert_close(outputs[0], encoded, rtol=0, atol=1e-5)
            assert outputs[1].equal(codes)
            decoded, latent = model.decode(codes).mean, {"codes": codes}
        else:
            posterior = model.encode(x, labels)
            torch.testing.assert_close(outputs[0], posterior.mean, rtol=0, atol=1e-5)
            torch.testing.assert_close(outputs[1], posterior.log_var, rtol=0, atol=1e-5)
            decoded, latent = model.decode(posterior.mean, labels).mean, {"z": posterior.mean, **condition}
    (pixels,) = run(exported[family] / "decoder.onnx", latent)
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
    before: bool, published: Mapping[str, Path], scores: Mapping[str, Any], split: Split, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "artifacts" / "vae"
    if before:
        out.mkdir(parents=True)
        (out / "decoder.onnx").write_text("of the export before")
    monkeypatch.setattr(artifacts, "write", other_weights)
    with pytest.raises(UserError, match=r"^encoder.onnx: differs from the torch model by \S+, allowed is 0.0001 "):
        export("vae", published["vae"], scores["vae"], split, CONFIG, out)
    assert [path.name for path in out.parent.iterdir()] == (["vae"] if before else [])
    assert not before or contents(out) == {"decoder.onnx": b"of the export before"}


def test_codes_that_differ_beyond_a_tie_are_not_exported(
    published: Mapping[str, Path], scores: Mapping[str, Any], split: Split, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def other_codes(part: Part, path: Path) -> None:
        module = copy.deepcopy(part.module)
        module.model.quantizer.codebook.copy_(module.model.quantizer.codebook.roll(1, 0))
        write(Part(module, part.inputs, part.outputs), path)

    monkeypatch.setattr(artifacts, "write", other_codes)
    with pytest.raises(UserError, match=r"^encoder.onnx: differs from the torch model by "):
        export("vqvae", published["vqvae"], scores["vqvae"], split, CONFIG, tmp_path / "vqvae")


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
    assert ("labels int64" in card) is (family == "cvae")
    for path in exported[family].iterdir():
        assert path.name in card or path.name == "README.md"


def test_fewer_images_than_asked_for_are_all_compared(
    published: Mapping[str, Path], scores: Mapping[str, Any], split: Split, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, exported: Mapping[str, Path],
) -> None:  # fmt: skip
    write_again: Callable[[Part, Path], object] = lambda _, path: path.write_bytes(  # noqa: E731
        (exported["vae"] / path.name).read_bytes()
    )
    monkeypatch.setattr(artifacts, "write", write_again)
    config = ExportConfig(parity_images=10_000, tolerance=1e-4)
    export("vae", published["vae"], scores["vae"], split, config, tmp_path / "vae")
    assert files.read_json(tmp_path / "vae" / "metrics.json")["parity"]["images"] == 330
