"""Pictures of what a model does with test images: those that its family can have, the same bytes every time."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split, open_split
from pipeline.evaluate import figures as module
from pipeline.evaluate.figures import TRAVERSED, _one_of_each_class, figures, grid
from pipeline.evaluate.models import open_model
from pipeline.figures import save_png
from pipeline.report.inputs import FIGURES
from pipeline.report.sections import CAPTIONS
from vae_core.config import ModelConfig
from vae_core.config.priors import PixelCNNConfig
from vae_core.models import CodeModel, Model, build_model
from vae_core.priors import CodePrior, build_prior

EVERY = {"reconstructions", "interpolation"}
DRAWN = {
    "autoencoder": EVERY | {"traversal"},
    "vae": EVERY | {"traversal", "samples"},
    "cvae": EVERY | {"traversal", "samples", "style"},
    "iwae": EVERY | {"traversal", "samples"},
    "vqvae": EVERY | {"codes"},
    "vqvae2": EVERY | {"codes"},
    "categorical": EVERY | {"codes", "samples"},
    "hierarchical": EVERY | {"traversal", "samples"},
}


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    return open_split(shards, "test")


def config(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"seed": 0, "batch_size": 100, "nll_samples": 4, "figure_images": 6, **changes})


def prior_of(model: Model) -> CodePrior:
    """A prior over a model's codes, as it was initialised."""
    assert isinstance(model, CodeModel)
    network = PixelCNNConfig(channels=8, layers=2)
    return build_prior(network, model.grids, model.num_codes, model.condition_dim).eval()


def png(figure: Figure, folder: Path) -> bytes:
    save_png(figure, folder / "figure.png", dpi=40)
    return (folder / "figure.png").read_bytes()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, tuple[Any, list[str], str]]]:
    """The rows, names and title of each picture, by name, in place of the pictures themselves."""

    def show(model: Model, split: Split, prior: CodePrior | None = None, **changes: Any) -> Any:
        monkeypatch.setattr(module, "grid", lambda rows, names, title: (list(rows), list(names), title))
        return figures(model, split, config(**changes), prior)

    return show


@pytest.mark.parametrize("family", DRAWN)
def test_a_family_has_its_pictures_the_same_bytes_every_time(
    published: Mapping[str, Path], split: Split, tmp_path: Path, family: str
) -> None:
    drawn = []
    for name in ("one", "other"):
        torch.manual_seed(len(drawn))
        made = figures(open_model(published[family]), split, config(), None)
        drawn.append({picture: png(figure, tmp_path / name) for picture, figure in made.items()})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == DRAWN[family]
    for picture in drawn[0].values():
        assert picture.startswith(b"\x89PNG")
        assert b"matplotlib" not in picture
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert min(pixels.shape) > 30
        assert len(np.unique(pixels)) > 20, "an empty picture"


def test_the_report_knows_every_picture() -> None:
    assert set(FIGURES) == set(CAPTIONS) == set().union(*DRAWN.values())


@pytest.mark.parametrize("family", ["vqvae", "vqvae2"])
@pytest.mark.parametrize("condition", ["none", "label"])
def test_a_quantised_family_has_samples_through_its_prior(
    family: str, condition: str, models: Mapping[str, ModelConfig], split: Split, shown: Any
) -> None:
    model = build_model(dataclasses.replace(models[family], condition=condition), split.spec).eval()
    rows, names, title = shown(model, split, prior_of(model), figure_images=4)["samples"]
    assert {tuple(row.shape) for row in rows} == {(4, 1, 8, 8)}
    if condition == "label":
        assert names == [f"class {digit}" for digit in range(10)]
        assert title == "Samples of each class (pixel means)"
    else:
        assert names == [""] * 4
    assert all(not rows[0][0].equal(other[0]) for other in rows[1:])


def test_pictures_show_an_image_of_each_class(split: Split) -> None:
    rows = _one_of_each_class(split, 20)
    assert split.labels(rows).tolist() == [*range(10), *range(10)]


def test_reconstructions_are_beside_their_images(
    published: Mapping[str, Path], models: Mapping[str, ModelConfig], split: Split, shown: Any
) -> None:
    rows, names, _ = shown(open_model(published["vae"]), split)["reconstructions"]
    assert names == ["image", "input", "reconstruction"]
    image, seen, _ = rows
    assert image.equal(torch.from_numpy(split.images(_one_of_each_class(split, 6))).movedim(-1, 1).float() / 255)
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    gray = build_model(dataclasses.replace(models["vae"], likelihood="gaussian"), split.spec).eval()
    rows, names, _ = shown(gray, split)["reconstructions"]
    assert names == ["image", "reconstruction"]
    assert rows[0].equal(image)


@pytest.mark.parametrize("family", DRAWN)
def test_interpolation_goes_from_one_reconstruction_to_another(
    family: str, published: Mapping[str, Path], split: Split, shown: Any
) -> None:
    model = open_model(published[family])
    drawn = shown(model, split, figure_images=10)
    rows, names, _ = drawn["interpolation"]
    assert [tuple(row.shape) for row in rows] == [(10, 1, 8, 8)] * 5
    reconstructed = drawn["reconstructions"][0][-1]
    for number, row in enumerate(rows):
        torch.testing.assert_close(row[0], reconstructed[number])
        if family != "cvae":  # which decodes the whole path as the class of its beginning
            torch.testing.assert_close(row[-1], reconstructed[number + 5])
    assert names == ([f"as {number}" for number in range(5)] if family == "cvae" else [""] * 5)


def test_traversals_show_the_dimensions_that_vary_most(
    models: Mapping[str, ModelConfig], split: Split, shown: Any
) -> None:
    model = build_model(dataclasses.replace(models["vae"], latent_dim=15, likelihood="gaussian"), split.spec).eval()
    rows, names, title = shown(model, split, figure_images=7)["traversal"]
    assert title == "One dimension at a time, from -3 to 3"
    assert [tuple(row.shape) for row in rows] == [(7, 1, 8, 8)] * TRAVERSED
    x = torch.from_numpy(split.images(_one_of_each_class(split, 10))).movedim(-1, 1).float() / 255
    spread = model.represent(x, None).std(0).tolist()
    assert names == [f"z{dim}" for dim in sorted(range(15), key=lambda dim: -spread[dim])[:TRAVERSED]]


def test_style_is_transferred_to_every_class(published: Mapping[str, Path], split: Split, shown: Any) -> None:
    drawn = shown(open_model(published["cvae"]), split, figure_images=3)
    rows, names, title = drawn["style"]
    assert names == ["0 as", "1 as", "2 as"]
    assert title == "Each image, then as class 0 to 9"
    assert [tuple(row.shape) for row in rows] == [(11, 1, 8, 8)] * 3  # the image, and as ten classes
    reconstructed = drawn["reconstructions"][0][-1]
    for label, row in enumerate(rows):
        torch.testing.assert_close(row[1 + label], reconstructed[label])


def test_codes_are_shown_by_number_level_by_level(published: Mapping[str, Path], split: Split, shown: Any) -> None:
    model = open_model(published["vqvae2"])
    rows, names, title = shown(model, split, figure_images=3)["codes"]
    assert names == ["image", "codes 2 x 2", "codes 4 x 4", "decoded"]
    assert title == "Codes (2 x 2 and 4 x 4 of 8, shown by number)"
    image, top, bottom, _ = rows
    codes = model.represent(image, None)
    assert (top[:, :, ::4, ::4] * 7).round().long().squeeze(1).equal(codes[0])
    assert (bottom[:, :, ::2, ::2] * 7).round().long().squeeze(1).equal(codes[1])


@pytest.mark.parametrize("family", ["vae", "vqvae", "vqvae2", "hierarchical", "categorical"])
def test_signals_are_drawn_as_curves(
    family: str, models: Mapping[str, ModelConfig], waves: Path, tmp_path: Path
) -> None:
    split = open_split(waves, "test")
    model = build_model(models[family], split.spec).eval()
    prior = prior_of(model) if family in ("vqvae", "vqvae2") else None
    drawn = figures(model, split, config(figure_images=2), prior)
    assert set(drawn) == DRAWN[family] | {"samples"}
    reconstructions = drawn["reconstructions"]
    assert [len(cell.lines) for cell in reconstructions.axes] == [1] * len(reconstructions.axes)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(png(reconstructions, tmp_path)))))) > 20


@pytest.mark.parametrize("family", ["cvae", "vqvae", "hierarchical"])
def test_samples_given_attributes_are_those_of_test_images(
    family: str, models: Mapping[str, ModelConfig], squares: Path, shown: Any
) -> None:
    split = open_split(squares, "test")
    model = build_model(dataclasses.replace(models[family], condition="attributes"), split.spec).eval()
    drawn = shown(model, split, prior_of(model) if family == "vqvae" else None, figure_images=4)
    rows, names, title = drawn["samples"]
    assert names == [f"image {number}" for number in range(1, 5)]
    assert title == "Samples given the attributes of test images"
    assert [tuple(row.shape) for row in rows] == [(4, 1, 8, 8)] * 4
    assert "style" not in drawn


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_colour_and_of_grey_are_drawn(channels: int, tmp_path: Path) -> None:
    rows = [torch.rand(3, channels, 4, 6, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    picture = np.asarray(Image.open(io.BytesIO(png(grid(rows, ["a", "b"], "title"), tmp_path))).convert("RGB"))
    coloured = float((picture.max(-1) > picture.min(-1)).mean())
    assert (coloured > 0.1) is (channels == 3)
