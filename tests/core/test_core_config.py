"""Configurations: out-of-range values are refused by name, and every configuration survives JSON and pickle."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from core_models import CONV, DIGITS, EVERY_KIND, MLP, vae, vqvae
from hypothesis import given
from hypothesis import strategies as st

from vae_core.config import (
    ConvConfig,
    DataSpec,
    MLPConfig,
    ModelConfig,
    RangeError,
    Strict,
    VAEConfig,
    VQVAEConfig,
    model_from_dict,
    to_dict,
)


def mlp(**fields: Any) -> MLPConfig:
    return MLPConfig(kind="mlp", **{"hidden": (8,), **fields})


def conv(**fields: Any) -> ConvConfig:
    return ConvConfig(kind="conv", **{"channels": 4, "downsamples": 1, **fields})


OUT_OF_RANGE = [
    (mlp, "hidden", ()),
    (mlp, "hidden", (8, 0)),
    (mlp, "hidden", (-1,)),
    (conv, "channels", 0),
    (conv, "downsamples", 0),
    (conv, "downsamples", 7),
    (conv, "residual_blocks", -1),
    (vae, "latent_dim", 0),
    (vae, "beta", -0.1),
    (vae, "beta", float("nan")),
    (vqvae, "num_codes", 1),
    (vqvae, "code_dim", 0),
    (vqvae, "commitment_weight", -1.0),
    (vqvae, "commitment_weight", float("nan")),
    (vqvae, "ema_decay", 0.0),
    (vqvae, "ema_decay", 1.0),
    (vqvae, "ema_decay", float("nan")),
    (vqvae, "restart_below", -0.01),
]
AT_THE_EDGE = [
    (mlp, "hidden", (1,)),
    (conv, "channels", 1),
    (conv, "downsamples", 6),
    (conv, "residual_blocks", 0),
    (vae, "latent_dim", 1),
    (vae, "beta", 0.0),
    (vqvae, "num_codes", 2),
    (vqvae, "code_dim", 1),
    (vqvae, "commitment_weight", 0.0),
    (vqvae, "ema_decay", 1e-9),
    (vqvae, "restart_below", 0.0),
]


@pytest.mark.parametrize(("make", "field", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name(make: Any, field: str, value: object) -> None:
    with pytest.raises(RangeError, match=f"^{field}: expected .+, got ") as caught:
        make(**{field: value})
    assert caught.value.field == field
    assert repr(caught.value.got) == repr(value)
    assert str(caught.value) == f"{field}: expected {caught.value.expected}, got {value!r}"


@pytest.mark.parametrize(("make", "field", "value"), AT_THE_EDGE)
def test_the_edge_of_a_range_is_allowed(make: Any, field: str, value: object) -> None:
    assert getattr(make(**{field: value}), field) == value


def test_every_number_of_a_model_has_a_range() -> None:
    checked = {(type(make()).__name__, field) for make, field, _ in OUT_OF_RANGE}
    numbers = {
        (kind.__name__, field.name)
        for kind in (MLPConfig, ConvConfig, VAEConfig, VQVAEConfig)
        for field in fields(kind)
        if field.type in (int, float, tuple[int, ...])
    }
    assert numbers == checked


widths = st.integers(1, 512)
activations = st.sampled_from(["relu", "tanh", "silu"])
likelihoods = st.sampled_from(["bernoulli", "gaussian"])
mlps = st.builds(
    MLPConfig, kind=st.just("mlp"), hidden=st.lists(widths, min_size=1, max_size=4).map(tuple), activation=activations
)
convs = st.builds(
    ConvConfig,
    kind=st.just("conv"),
    channels=widths,
    downsamples=st.integers(1, 6),
    residual_blocks=st.integers(0, 3),
    activation=activations,
)
vaes = st.builds(
    VAEConfig,
    kind=st.just("vae"),
    latent_dim=widths,
    network=mlps | convs,
    beta=st.floats(0, 100),
    likelihood=likelihoods,
    condition=st.sampled_from(["none", "label"]),
)
vqvaes = st.builds(
    VQVAEConfig,
    kind=st.just("vqvae"),
    num_codes=st.integers(2, 4096),
    code_dim=widths,
    network=convs,
    commitment_weight=st.floats(0, 10),
    ema_decay=st.floats(0.01, 0.999),
    restart_below=st.floats(0, 1),
    likelihood=likelihoods,
)


@given(vaes | vqvaes)
def test_a_configuration_comes_back_from_its_dictionary_and_from_json(config: ModelConfig) -> None:
    assert model_from_dict(to_dict(config)) == config
    assert model_from_dict(json.loads(json.dumps(to_dict(config)))) == config


@given(vaes | vqvaes)
def test_a_configuration_survives_pickle_and_deepcopy(config: ModelConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert hash(copy.deepcopy(config)) == hash(config)


@pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_reading_a_dictionary_leaves_it_as_it_was(config: ModelConfig) -> None:
    values = json.loads(json.dumps(to_dict(config)))
    before = copy.deepcopy(values)
    model_from_dict(values)
    assert values == before


@pytest.mark.parametrize("kind", ["gan", "", None, "VAE"])
def test_an_unknown_kind_is_refused_with_the_kinds_there_are(kind: object) -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of \['vae', 'vqvae'\], got"):
        model_from_dict({**to_dict(vae()), "kind": kind})
    with pytest.raises(ValueError, match=r"kind: expected one of \['conv', 'mlp'\], got"):
        model_from_dict({**to_dict(vae()), "network": {**to_dict(vae())["network"], "kind": kind}})


def test_a_missing_kind_is_refused() -> None:
    values = to_dict(vqvae())
    del values["kind"]
    with pytest.raises(ValueError, match="kind: expected one of"):
        model_from_dict(values)


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"VAEConfig has no field \['latent', 'num_codes'\]"):
        model_from_dict({**to_dict(vae()), "num_codes": 3, "latent": 2})
    with pytest.raises(ValueError, match=r"MLPConfig has no field \['channels'\]"):
        model_from_dict({**to_dict(vae()), "network": {**to_dict(vae())["network"], "channels": 3}})


def test_a_value_out_of_range_in_a_dictionary_is_refused_by_name() -> None:
    with pytest.raises(RangeError, match="latent_dim"):
        model_from_dict({**to_dict(vae()), "latent_dim": 0})


@pytest.mark.parametrize("config", [MLP, CONV, vae(), vqvae(), DIGITS], ids=lambda config: type(config).__name__)
def test_configurations_are_frozen_and_refuse_unknown_keywords(config: Any) -> None:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    name = fields(config)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, values[name])
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        type(config)(**values, speed=1)
    with pytest.raises(TypeError):
        type(config)(*values.values())
    assert isinstance(config, Strict)
    assert not hasattr(config, "__dict__")


def test_pydantic_is_told_to_be_strict() -> None:
    for kind in (MLPConfig, ConvConfig, VAEConfig, VQVAEConfig, DataSpec):
        assert kind.__pydantic_config__.items() >= {"extra": "forbid", "strict": True}.items()


def test_the_shape_of_the_data_is_channels_height_width() -> None:
    assert DataSpec(channels=3, height=4, width=6).shape == (3, 4, 6)
    assert DataSpec(channels=3, height=4, width=6).num_classes == 0
