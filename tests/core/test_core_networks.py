"""Network bodies: shapes for any size that fits, an error for one that does not, decoders that mirror encoders."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vae_core.config import ConvConfig, DataSpec, MLPConfig
from vae_core.networks import (
    ConvDown,
    ConvUp,
    Residual,
    build_decoder,
    build_encoder,
    default_network,
    downsamples_of,
    grid_shape,
    join_channels,
)

activations = st.sampled_from(["relu", "tanh", "silu"])
mlps = st.builds(
    MLPConfig,
    kind=st.just("mlp"),
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    activation=activations,
)
convs = st.builds(
    ConvConfig,
    kind=st.sampled_from(["conv", "residual"]),
    channels=st.integers(1, 4),
    downsamples=st.integers(1, 3),
    residual_blocks=st.integers(0, 2),
    activation=activations,
)
quick = settings(max_examples=40)


def conv(downsamples: int | None = 2, channels: int = 3, residual_blocks: int = 1) -> ConvConfig:
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
    factor = 2 ** (config.downsamples or 0)
    shape = (size[0], size[1] * factor, size[2] * factor)
    condition = condition_of(condition_dim, rows)
    encoder = build_encoder(config, shape, condition_dim)
    decoder = build_decoder(config, latent_dim, shape, condition_dim)
    assert encoder(torch.rand(rows, *shape), condition).shape == (rows, encoder.features)
    assert decoder(torch.rand(rows, latent_dim), condition).shape == (rows, *shape)
    assert grid_shape(config, shape) == (config.channels * factor // 2, size[1], size[2])
    assert encoder.features == math.prod(grid_shape(config, shape)) + condition_dim


@quick
@given(st.integers(1, 6), st.integers(2, 100), st.integers(1, 100))
def test_a_size_is_refused_exactly_when_it_does_not_halve(downsamples: int, height: int, width: int) -> None:
    factor = 2**downsamples
    if height % factor or width % factor:
        with pytest.raises(
            ValueError, match=rf"divisible by {factor}; the images are {height} x {width}: set data\.image\.size"
        ):
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
        grid = ConvDown(conv(downsamples), 3, (3, 16, 24))(x)
        assert grid.shape == (2, 3 * 2 ** (downsamples - 1), 16 // 2**downsamples, 24 // 2**downsamples)
        assert ConvUp(conv(downsamples), 3, (3, 16, 24))(grid).shape == x.shape


def test_width_doubles_with_each_downsampling_but_the_first() -> None:
    for kind in ("conv", "residual"):
        config = replace(conv(3, channels=5, residual_blocks=0), kind=kind)
        halved = [layer for layer in ConvDown(config, 1, (1, 8, 8)).layers if getattr(layer, "stride", 1) == (2, 2)]
        assert [layer.out_channels for layer in halved] == [5, 10, 20]


def residual_widths(body: ConvDown | ConvUp) -> list[int]:
    return [layer.body[1].in_channels for layer in body.layers if isinstance(layer, Residual)]


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_residual_blocks_are_at_the_lowest_resolution_or_at_every_one(blocks: int) -> None:
    shape, lowest = (1, 8, 8), conv(2, residual_blocks=blocks)
    every = replace(lowest, kind="residual")
    for body in (ConvDown, ConvUp):
        assert residual_widths(body(lowest, 1, shape)) == [6] * blocks
    assert residual_widths(ConvDown(every, 1, shape)) == [3] * blocks + [3] * blocks + [6] * blocks
    assert residual_widths(ConvUp(every, 1, shape)) == [6] * blocks + [3] * blocks + [3] * blocks


def old_style_layers(down: bool) -> nn.Sequential:
    """What `conv` has always been: strided convolutions with padding 1, each activated, then residual blocks."""
    act, block = nn.ReLU, lambda: Residual(6, "relu")
    if down:
        return nn.Sequential(nn.Conv2d(1, 3, 4, 2, 1), act(), nn.Conv2d(3, 6, 4, 2, 1), act(), block(), block())
    up = (nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.ConvTranspose2d(3, 1, 4, 2, 1))
    return nn.Sequential(block(), block(), act(), up[0], act(), up[1])


@pytest.mark.parametrize("down", [True, False])
def test_conv_bodies_keep_their_parameters_and_arithmetic(down: bool) -> None:
    config, shape = conv(2, residual_blocks=2), (1, 8, 8)
    body = ConvDown(config, 1, shape) if down else ConvUp(config, 1, shape)
    reference = old_style_layers(down)
    reference.load_state_dict(body.layers.state_dict())
    x = torch.randn((2, 1, 8, 8) if down else (2, 6, 2, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(body(x), reference(x))


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("silu", nn.SiLU)])
def test_the_activation_is_the_one_configured(name: str, kind: type[nn.Module]) -> None:
    mlp = MLPConfig(kind="mlp", hidden=(3, 3), activation=name)  # type: ignore[arg-type]
    deep = ConvConfig(kind="conv", channels=2, downsamples=2, residual_blocks=1, activation=name)  # type: ignore[arg-type]
    for config in (mlp, deep, replace(deep, kind="residual")):
        for body in (build_encoder(config, (1, 4, 4), 0), build_decoder(config, 2, (1, 4, 4), 0)):
            found = {type(m) for m in body.modules() if isinstance(m, (nn.ReLU, nn.Tanh, nn.SiLU))}
            assert found == {kind}


@pytest.mark.parametrize("config", [MLPConfig(kind="mlp", hidden=(6, 5)), conv(), replace(conv(), kind="residual")])
def test_decoders_end_without_an_activation(config: MLPConfig | ConvConfig) -> None:
    torch.manual_seed(0)
    decoder = build_decoder(config, 3, (1, 8, 8), 0)
    pixels = decoder(10 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), None)
    assert pixels.min() < 0 < pixels.max()


@pytest.mark.parametrize("config", [MLPConfig(kind="mlp", hidden=(6, 5)), conv(), replace(conv(), kind="residual")])
def test_rows_do_not_see_one_another(config: MLPConfig | ConvConfig) -> None:
    encoder, decoder = build_encoder(config, (1, 8, 8), 2), build_decoder(config, 3, (1, 8, 8), 2)
    x, z, condition = torch.rand(4, 1, 8, 8), torch.rand(4, 3), torch.rand(4, 2)
    torch.testing.assert_close(encoder(x, condition)[1:2], encoder(x[1:2], condition[1:2]))
    torch.testing.assert_close(decoder(z, condition)[1:2], decoder(z[1:2], condition[1:2]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *[((8, 8), 1), ((28, 28), 2), ((32, 32), 3), ((64, 64), 4), ((128, 128), 5), ((28, 20), 2), ((64, 32), 3)],
        *[((4, 4), 1), ((30, 30), 1), ((1, 64), 1), ((1, 1024), 5), ((1, 16_000), 7), ((1, 48), 1)],
    ],
)
def test_downsamples_follow_the_size_where_none_are_configured(size: tuple[int, int], expected: int) -> None:
    assert downsamples_of(conv(None), (1, *size)) == expected


@quick
@given(st.integers(2, 300), st.integers(2, 300))
def test_chosen_downsamples_leave_a_side_of_4_to_7_or_are_as_many_as_fit(height: int, width: int) -> None:
    if height % 2 or width % 2:
        with pytest.raises(ValueError, match=r"network\.downsamples: 1 halvings .* set data\.image\.size"):
            downsamples_of(conv(None), (1, height, width))
        return
    chosen = downsamples_of(conv(None), (1, height, width))
    left = min(height, width) / 2**chosen
    one_more = 2 ** (chosen + 1)
    assert height % 2**chosen == width % 2**chosen == 0
    assert 4 <= left < 8 or (left < 4 and chosen == 1) or height % one_more or width % one_more


def test_every_configured_network_names_its_size_error_on_both_sides() -> None:
    for kind in ("conv", "residual"):
        config = replace(conv(None), kind=kind)
        for build in (lambda c: build_encoder(c, (3, 31, 32), 0), lambda c: build_decoder(c, 4, (3, 31, 32), 0)):
            with pytest.raises(ValueError, match=r"the images are 31 x 32: set data\.image\.size"):
                build(config)


@pytest.mark.parametrize("kind", ["conv", "residual"])
@pytest.mark.parametrize("downsamples", [None, 3])
def test_signals_are_halved_along_their_width_alone(kind: str, downsamples: int | None) -> None:
    config, shape = replace(conv(downsamples), kind=kind), (2, 1, 512)
    encoder, decoder = build_encoder(config, shape, 0), build_decoder(config, 5, shape, 0)
    expected = 2 ** (downsamples or 4)
    assert grid_shape(config, shape) == (3 * expected // 2, 1, 512 // expected)
    assert encoder(torch.rand(2, *shape), None).shape == (2, encoder.features)
    assert decoder(torch.rand(2, 5), None).shape == (2, *shape)
    kernels = {m.kernel_size for body in (encoder, decoder) for m in body.modules() if hasattr(m, "kernel_size")}
    assert kernels == ({(1, 4), (1, 3), (1, 1)})


def test_a_convolution_of_a_signal_is_the_one_dimensional_convolution() -> None:
    down = ConvDown(conv(1, residual_blocks=0), 2, (2, 1, 64)).layers[0]
    flat = nn.Conv1d(2, 3, kernel_size=4, stride=2, padding=1)
    flat.load_state_dict({"weight": down.weight[:, :, 0], "bias": down.bias})
    x = torch.randn(2, 2, 1, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(down(x)[:, :, 0], flat(x[:, :, 0]))


def test_an_image_whose_grid_has_height_1_keeps_its_2d_convolutions() -> None:
    body = ConvDown(conv(2), 1, (1, 4, 16))
    assert body(torch.rand(1, 1, 4, 16)).shape == (1, 6, 1, 4)
    assert {m.kernel_size for m in body.modules() if isinstance(m, nn.Conv2d)} == {(4, 4), (3, 3), (1, 1)}


def test_every_parameter_of_every_kind_is_trained() -> None:
    for kind in ("conv", "residual"):
        config = ConvConfig(kind=kind, channels=2, downsamples=2, residual_blocks=1, activation="silu")  # type: ignore[arg-type]
        for body in (build_encoder(config, (1, 8, 8), 2), build_decoder(config, 3, (1, 8, 8), 2)):
            first = torch.rand(2, 1, 8, 8) if hasattr(body, "features") else torch.rand(2, 3)
            body(first, torch.rand(2, 2)).sum().backward()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in body.parameters())


def test_a_condition_becomes_constant_channels() -> None:
    x, condition = torch.rand(2, 3, 4, 5), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    joined = join_channels(x, condition)
    assert joined.shape == (2, 5, 4, 5)
    assert torch.equal(joined[:, :3], x)
    assert torch.equal(joined[:, 3:], condition[:, :, None, None].expand(2, 2, 4, 5))
    assert join_channels(x, None) is x


@pytest.mark.parametrize(
    ("size", "kind"),
    [((1, 28, 28), "mlp"), ((1, 32, 32), "mlp"), ((3, 32, 32), "conv"), ((1, 64, 64), "conv"), ((1, 1, 512), "conv")],
)
def test_the_default_network_suits_the_size_of_the_data(size: tuple[int, int, int], kind: str) -> None:
    network = default_network(DataSpec(channels=size[0], height=size[1], width=size[2]))
    assert network.kind == kind
    assert build_decoder(network, 4, size, 0)(torch.rand(1, 4), None).shape == (1, *size)
