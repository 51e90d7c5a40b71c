"""Network bodies: shapes for any size that fits, an error for one that does not, decoders that mirror encoders."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vae_core.conditioning import LabelCondition
from vae_core.config import ConvConfig, MLPConfig
from vae_core.networks import ConvDown, ConvUp, build_decoder, build_encoder, grid_shape

activations = st.sampled_from(["relu", "tanh", "silu"])
mlps = st.builds(
    MLPConfig,
    kind=st.just("mlp"),
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    activation=activations,
)
convs = st.builds(
    ConvConfig,
    kind=st.just("conv"),
    channels=st.integers(1, 4),
    downsamples=st.integers(1, 3),
    residual_blocks=st.integers(0, 2),
    activation=activations,
)
quick = settings(deadline=None, max_examples=40)


def conv(downsamples: int = 2, channels: int = 3, residual_blocks: int = 1) -> ConvConfig:
    return ConvConfig(kind="conv", channels=channels, downsamples=downsamples, residual_blocks=residual_blocks)


def condition_of(width: int, rows: int) -> Tensor | None:
    return torch.rand(rows, width) if width else None


@quick
@given(mlps, st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_mlp_bodies_fit_any_image(
    config: MLPConfig, shape: tuple[int, int, int], latent_dim: int, condition_dim: int, rows: int
) -> None:
    condition = condition_of(condition_dim, rows)
    encoder = build_encoder(config, shape, condition_dim)
    decoder = build_decoder(config, latent_dim, shape, condition_dim)
    assert encoder.features == config.hidden[-1]
    assert encoder(torch.rand(rows, *shape), condition).shape == (rows, encoder.features)
    assert decoder(torch.rand(rows, latent_dim), condition).shape == (rows, *shape)


@quick
@given(convs, st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_conv_bodies_fit_any_image_that_halves(
    config: ConvConfig, size: tuple[int, int, int], latent_dim: int, condition_dim: int, rows: int
) -> None:
    factor = 2**config.downsamples
    shape = (size[0], size[1] * factor, size[2] * factor)
    condition = condition_of(condition_dim, rows)
    encoder = build_encoder(config, shape, condition_dim)
    decoder = build_decoder(config, latent_dim, shape, condition_dim)
    assert encoder(torch.rand(rows, *shape), condition).shape == (rows, encoder.features)
    assert decoder(torch.rand(rows, latent_dim), condition).shape == (rows, *shape)
    assert grid_shape(config, shape) == (config.channels * factor // 2, size[1], size[2])
    assert encoder.features == math.prod(grid_shape(config, shape)) + condition_dim


@quick
@given(st.integers(1, 6), st.integers(1, 100), st.integers(1, 100))
def test_a_size_is_refused_exactly_when_it_does_not_halve(downsamples: int, height: int, width: int) -> None:
    factor = 2**downsamples
    if height % factor or width % factor:
        with pytest.raises(ValueError, match=rf"divisible by {factor}; the images are {height} x {width}$"):
            grid_shape(conv(downsamples), (1, height, width))
    else:
        assert grid_shape(conv(downsamples), (1, height, width))[1:] == (height // factor, width // factor)


@pytest.mark.parametrize("shape", [(1, 8, 6), (1, 6, 8), (1, 7, 7)])
def test_either_side_may_be_the_one_that_does_not_halve(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"network\.downsamples: 2 halvings"):
        build_encoder(conv(), shape, 0)
    with pytest.raises(ValueError, match=r"network\.downsamples: 2 halvings"):
        build_decoder(conv(), 4, shape, 0)


def test_up_undoes_the_shape_of_down() -> None:
    for downsamples in (1, 2, 3):
        x = torch.rand(2, 3, 16, 24)
        grid = ConvDown(conv(downsamples), 3)(x)
        assert grid.shape == (2, 3 * 2 ** (downsamples - 1), 16 // 2**downsamples, 24 // 2**downsamples)
        assert ConvUp(conv(downsamples), 3)(grid).shape == x.shape


def test_width_doubles_with_each_downsampling_but_the_first() -> None:
    widths = [layer.out_channels for layer in ConvDown(conv(3, channels=5, residual_blocks=0), 1).layers[::2]]
    assert widths == [5, 10, 20]


def test_residual_blocks_are_as_many_as_configured_on_both_sides() -> None:
    for blocks in (0, 1, 3):
        for body in (ConvDown(conv(residual_blocks=blocks), 1), ConvUp(conv(residual_blocks=blocks), 1)):
            assert sum(type(layer).__name__ == "Residual" for layer in body.layers) == blocks


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("silu", nn.SiLU)])
def test_the_activation_is_the_one_configured(name: str, kind: type[nn.Module]) -> None:
    mlp = MLPConfig(kind="mlp", hidden=(3, 3), activation=name)  # type: ignore[arg-type]
    deep = ConvConfig(kind="conv", channels=2, downsamples=2, residual_blocks=1, activation=name)  # type: ignore[arg-type]
    for config in (mlp, deep):
        for body in (build_encoder(config, (1, 4, 4), 0), build_decoder(config, 2, (1, 4, 4), 0)):
            found = {type(m) for m in body.modules() if isinstance(m, (nn.ReLU, nn.Tanh, nn.SiLU))}
            assert found == {kind}


@pytest.mark.parametrize("config", [MLPConfig(kind="mlp", hidden=(6, 5)), conv()])
def test_decoders_end_without_an_activation(config: MLPConfig | ConvConfig) -> None:
    decoder = build_decoder(config, 3, (1, 8, 8), 0)
    pixels = decoder(10 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), None)
    assert pixels.min() < 0 < pixels.max()


@pytest.mark.parametrize("config", [MLPConfig(kind="mlp", hidden=(6, 5)), conv()])
def test_rows_do_not_see_one_another(config: MLPConfig | ConvConfig) -> None:
    encoder, decoder = build_encoder(config, (1, 8, 8), 2), build_decoder(config, 3, (1, 8, 8), 2)
    x, z, condition = torch.rand(4, 1, 8, 8), torch.rand(4, 3), torch.rand(4, 2)
    torch.testing.assert_close(encoder(x, condition)[1:2], encoder(x[1:2], condition[1:2]))
    torch.testing.assert_close(decoder(z, condition)[1:2], decoder(z[1:2], condition[1:2]))


def test_a_label_becomes_a_one_hot_vector() -> None:
    condition = LabelCondition(4)
    found = condition(torch.tensor([2, 0]))
    assert condition.dim == 4
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("classes", [0, 1])
def test_a_label_condition_needs_two_classes(classes: int) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        LabelCondition(classes)
