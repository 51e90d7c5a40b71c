"""Configurations: out-of-range values are refused by name, and every configuration survives JSON and pickle."""

import copy
import json
import pickle
import typing
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from core_models import (
    DIGITS,
    EVERY_KIND,
    autoencoder,
    categorical,
    hierarchical,
    iwae,
    vae,
    vqvae,
    vqvae2,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core import config as package
from vae_core.config import (
    AutoencoderConfig,
    CategoricalConfig,
    ConvConfig,
    CyclicalConfig,
    DataSpec,
    HierarchicalConfig,
    IWAEConfig,
    MLPConfig,
    ModelConfig,
    OneCycleConfig,
    RampConfig,
    RangeError,
    Strict,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
    model_from_dict,
    to_dict,
)
from vae_core.config.priors import PixelCNNConfig


def mlp(**fields: Any) -> MLPConfig:
    return MLPConfig(kind="mlp", **{"hidden": (8,), **fields})


def conv(**fields: Any) -> ConvConfig:
    return ConvConfig(kind="conv", **{"channels": 4, "downsamples": 1, **fields})


def data(**fields: Any) -> DataSpec:
    return DataSpec(**{"channels": 1, "height": 8, "width": 8, **fields})


def ramp(**fields: Any) -> RampConfig:
    return RampConfig(**{"kind": "linear", "start": 0.0, "end": 1.0, **fields})


def cyclical(**fields: Any) -> CyclicalConfig:
    return CyclicalConfig(kind="cyclical", **{"start": 0.0, "end": 1.0, **fields})


def one_cycle(**fields: Any) -> OneCycleConfig:
    return OneCycleConfig(kind="one_cycle", **{"peak": 1.0, **fields})


def pixelcnn(**fields: Any) -> PixelCNNConfig:
    return PixelCNNConfig(**fields)


NAN, INF = float("nan"), float("inf")
MODELS = (autoencoder, vae, iwae, vqvae, vqvae2, categorical, hierarchical)
FACTORIES: tuple[Any, ...] = (*MODELS, mlp, conv, data, ramp, cyclical, one_cycle, pixelcnn)
OUT_OF_RANGE: list[tuple[Any, str, object]] = [
    *((make, "sigma", value) for make in MODELS for value in (0.0, -1.0, NAN, "fixed")),
    *((make, "condition_dropout", value) for make in MODELS for value in (-0.1, 1.0, NAN)),
    *((make, "latent_dim", 0) for make in (autoencoder, vae, iwae)),
    *((make, "beta", value) for make in (vae, categorical, hierarchical) for value in (-0.1, NAN, ramp(end=-1.0))),
    *((make, "free_bits", value) for make in (vae, hierarchical) for value in (-0.1, NAN)),
    *((make, "samples", 0) for make in (vae, iwae, categorical)),
    *((make, "num_codes", 1) for make in (vqvae, vqvae2)),
    *((make, "code_dim", 0) for make in (vqvae, vqvae2)),
    *((make, "commitment_weight", value) for make in (vqvae, vqvae2) for value in (-1.0, NAN, ramp(start=-1.0))),
    *((make, "ema_decay", value) for make in (vqvae, vqvae2) for value in (0.0, 1.0, NAN)),
    *((make, "restart_below", value) for make in (vqvae, vqvae2) for value in (-0.01, NAN)),
    *((vae, field, value) for field in ("capacity", "total_correlation") for value in (-0.1, NAN, ramp(start=-1.0))),
    *((vqvae2, "levels", value) for value in (0, 1, 5)),
    (categorical, "variables", 0),
    (categorical, "categories", 1),
    *((categorical, "temperature", value) for value in (0.0, -1.0, NAN, ramp(start=1.0, end=0.0))),
    (hierarchical, "groups", 0),
    (hierarchical, "latent_channels", 0),
    *((mlp, "hidden", value) for value in ((), (8, 0), (-1,))),
    (conv, "channels", 0),
    *((conv, "downsamples", value) for value in (-1, 0, 11)),
    (conv, "residual_blocks", -1),
    *((data, field, 0) for field in ("channels", "height", "width")),
    *((data, field, -1) for field in ("num_classes", "attributes", "embedding")),
    *((make, field, value) for make in (ramp, cyclical) for field in ("start", "end") for value in (NAN, INF, -INF)),
    *((ramp, "until", value) for value in (0.0, 1.1, NAN)),
    (cyclical, "cycles", 0),
    *((cyclical, "rise", value) for value in (0.0, 1.1, NAN)),
    *((one_cycle, "peak", value) for value in (0.0, -1.0, NAN, INF)),
    *((one_cycle, "warmup", value) for value in (-0.1, 1.0, NAN)),
    (pixelcnn, "channels", 0),
    (pixelcnn, "layers", 0),
    *((pixelcnn, "dropout", value) for value in (-0.1, 1.0, NAN)),
]
AT_THE_EDGE: list[tuple[Any, str, object]] = [
    *((make, "sigma", value) for make in MODELS for value in (1e-9, "learned", "per_pixel")),
    *((make, "condition_dropout", 0.0) for make in MODELS),
    *((make, "latent_dim", 1) for make in (autoencoder, vae, iwae)),
    *((make, "beta", 0.0) for make in (vae, categorical, hierarchical)),
    *((make, "free_bits", 0.0) for make in (vae, hierarchical)),
    *((make, "samples", 1) for make in (vae, iwae, categorical)),
    *((vae, field, value) for field in ("capacity", "total_correlation") for value in (None, 0.0)),
    *((make, "num_codes", 2) for make in (vqvae, vqvae2)),
    *((make, "code_dim", 1) for make in (vqvae, vqvae2)),
    *((make, "commitment_weight", 0.0) for make in (vqvae, vqvae2)),
    *((make, "ema_decay", 1e-9) for make in (vqvae, vqvae2)),
    *((make, "restart_below", 0.0) for make in (vqvae, vqvae2)),
    *((vqvae2, "levels", value) for value in (2, 4)),
    (categorical, "variables", 1),
    (categorical, "categories", 2),
    (categorical, "temperature", 1e-9),
    (hierarchical, "groups", 1),
    (hierarchical, "latent_channels", 1),
    (mlp, "hidden", (1,)),
    (conv, "channels", 1),
    *((conv, "downsamples", value) for value in (None, 1, 10)),
    (conv, "residual_blocks", 0),
    *((data, field, 1) for field in ("channels", "height", "width")),
    (ramp, "until", 1.0),
    (cyclical, "cycles", 1),
    (cyclical, "rise", 1.0),
    (one_cycle, "warmup", 0.0),
    (pixelcnn, "layers", 1),
    (pixelcnn, "dropout", 0.0),
]


def named(case: object) -> str:
    return case.__name__ if callable(case) else str(case)


@pytest.mark.parametrize(("make", "field", "value"), OUT_OF_RANGE, ids=named)
def test_a_value_out_of_range_is_refused_by_name(make: Any, field: str, value: object) -> None:
    with pytest.raises(RangeError, match=f"^{field}: expected .+, got ") as caught:
        make(**{field: value})
    assert caught.value.field == field
    assert repr(caught.value.got) == repr(value)
    assert str(caught.value) == f"{field}: expected {caught.value.expected}, got {value!r}"


@pytest.mark.parametrize(("make", "field", "value"), AT_THE_EDGE, ids=named)
def test_the_edge_of_a_range_is_allowed(make: Any, field: str, value: object) -> None:
    assert getattr(make(**{field: value}), field) == value


def holds_numbers(hint: Any) -> bool:
    return hint in (int, float) or any(holds_numbers(part) for part in typing.get_args(hint))


def test_every_number_of_every_configuration_has_a_range() -> None:
    checked = {(type(make()), field) for make, field, _ in OUT_OF_RANGE}
    numbers = {
        (type(make()), field.name) for make in FACTORIES for field in fields(make()) if holds_numbers(field.type)
    }
    assert numbers == checked


def test_every_configuration_class_is_looked_at_here() -> None:
    public = {getattr(package, name) for name in package.__all__}
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Strict) and fields_of(kind)}
    assert {type(make()) for make in FACTORIES} - {PixelCNNConfig} == kinds - {package.ModelBase}


def fields_of(kind: type) -> bool:
    return hasattr(kind, "__dataclass_fields__")


TOGETHER: list[tuple[Any, dict[str, Any], str]] = [
    (vae, {"capacity": 1.0, "free_bits": 0.1}, "at most one of capacity, free_bits, total_correlation"),
    (vae, {"capacity": 1.0, "total_correlation": 2.0}, "at most one of capacity, free_bits, total_correlation"),
    (vae, {"free_bits": 0.1, "total_correlation": 2.0}, "at most one of capacity, free_bits, total_correlation"),
    (vae, {"prior": "learned"}, "prior: expected standard where condition is none"),
    (iwae, {"prior": "learned"}, "prior: expected standard where condition is none"),
    (categorical, {"estimator": "rloo", "samples": 1}, "samples: expected at least 2 for rloo, got 1"),
    (categorical, {"estimator": "vimco", "samples": 1}, "samples: expected at least 2 for vimco, got 1"),
    (vqvae, {"codebook": "fsq", "num_codes": 8, "code_dim": 2}, "num_codes: expected .* such as 9 or 25, got 8"),
    (vqvae2, {"codebook": "fsq", "num_codes": 2, "code_dim": 3}, "num_codes: expected .* such as 27 or 125, got 2"),
    (ramp, {"kind": "exponential"}, "start: expected a number above 0, got 0.0"),
]


@pytest.mark.parametrize(("make", "values", "message"), TOGETHER)
def test_values_that_do_not_go_together_are_refused(make: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RangeError, match=message):
        make(**values)


@given(st.integers(2, 9), st.integers(1, 6))
def test_the_codes_of_fsq_are_a_power_of_its_levels(levels: int, dim: int) -> None:
    config = vqvae(codebook="fsq", num_codes=levels**dim, code_dim=dim)
    assert config.fsq_levels == levels
    if dim > 1:
        with pytest.raises(RangeError, match="num_codes"):
            vqvae(codebook="fsq", num_codes=levels**dim + 1, code_dim=dim)


def test_the_fields_that_may_be_schedules_are_those_named() -> None:
    for make in MODELS:
        scheduled = {field.name for field in fields(make()) if RampConfig in typing.get_args(field.type)}
        assert set(make().SCHEDULED) == scheduled


widths = st.integers(1, 512)
activations = st.sampled_from(["relu", "tanh", "silu"])
numbers = st.floats(0.01, 100)
schedules = (
    st.builds(
        RampConfig,
        kind=st.sampled_from(["linear", "cosine", "exponential"]),
        start=numbers,
        end=numbers,
        until=st.floats(0.01, 1),
    )
    | st.builds(CyclicalConfig, kind=st.just("cyclical"), start=numbers, end=numbers, cycles=st.integers(1, 9))
    | st.builds(OneCycleConfig, kind=st.just("one_cycle"), peak=numbers, warmup=st.floats(0, 0.9))
)
weights = numbers | schedules
mlps = st.builds(
    MLPConfig, kind=st.just("mlp"), hidden=st.lists(widths, min_size=1, max_size=4).map(tuple), activation=activations
)
convs = st.builds(
    ConvConfig,
    kind=st.sampled_from(["conv", "residual"]),
    channels=widths,
    downsamples=st.none() | st.integers(1, 10),
    residual_blocks=st.integers(0, 3),
    activation=activations,
)
common: dict[str, Any] = {
    "likelihood": st.sampled_from(["bernoulli", "continuous_bernoulli", "gaussian", "discretised_logistic"]),
    "sigma": st.floats(0.01, 10) | st.sampled_from(["learned", "per_pixel"]),
    "condition": st.sampled_from(["label", "attributes", "embedding"]),
    "condition_dropout": st.floats(0, 0.9),
}
gaussian = {**common, "latent_dim": widths, "network": mlps | convs}
priors = st.sampled_from(["standard", "learned"])
quantized = {
    **common,
    "num_codes": st.integers(2, 4096),
    "code_dim": widths,
    "network": convs,
    "codebook": st.sampled_from(["ema", "loss"]),
    "distance": st.sampled_from(["euclidean", "cosine"]),
    "start": st.sampled_from(["outputs", "kmeans"]),
    "commitment_weight": weights,
    "ema_decay": st.floats(0.01, 0.999),
    "restart_below": st.floats(0, 1),
}


def vaes(**variant: Any) -> st.SearchStrategy[VAEConfig]:
    return st.builds(
        VAEConfig, kind=st.just("vae"), **gaussian, beta=weights, samples=st.integers(1, 9), prior=priors, **variant
    )


models: st.SearchStrategy[ModelConfig] = st.one_of(
    st.builds(AutoencoderConfig, kind=st.just("autoencoder"), **gaussian),
    vaes(capacity=weights),
    vaes(free_bits=numbers),
    vaes(total_correlation=weights),
    st.builds(
        IWAEConfig,
        kind=st.just("iwae"),
        **gaussian,
        samples=st.integers(1, 99),
        gradient=st.sampled_from(["iwae", "stl", "dreg"]),
        prior=priors,
    ),
    st.builds(VQVAEConfig, kind=st.just("vqvae"), **quantized),
    st.builds(VQVAE2Config, kind=st.just("vqvae2"), **quantized, levels=st.integers(2, 4)),
    st.builds(
        CategoricalConfig,
        kind=st.just("categorical"),
        **common,
        variables=widths,
        categories=st.integers(2, 99),
        network=mlps | convs,
        estimator=st.sampled_from(["gumbel", "straight_through", "reinforce", "rloo"]),
        samples=st.integers(2, 9),
        beta=weights,
        temperature=weights,
    ),
    st.builds(
        HierarchicalConfig,
        kind=st.just("hierarchical"),
        **common,
        network=convs,
        groups=st.integers(1, 9),
        latent_channels=widths,
        beta=weights,
        free_bits=numbers,
        balance=st.booleans(),
    ),
)


@settings(max_examples=150)
@given(models)
def test_a_configuration_comes_back_from_its_dictionary_and_from_json(config: ModelConfig) -> None:
    assert model_from_dict(to_dict(config)) == config
    assert model_from_dict(json.loads(json.dumps(to_dict(config)))) == config


@settings(max_examples=100)
@given(models)
def test_a_configuration_survives_pickle_and_deepcopy(config: ModelConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert hash(copy.deepcopy(config)) == hash(config)


@pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
def test_reading_a_dictionary_leaves_it_as_it_was(config: ModelConfig) -> None:
    values = json.loads(json.dumps(to_dict(config)))
    before = copy.deepcopy(values)
    assert model_from_dict(values) == config
    assert values == before


KINDS = r"\['autoencoder', 'categorical', 'hierarchical', 'iwae', 'vae', 'vqvae', 'vqvae2'\]"
NESTED = {
    "network": r"\['conv', 'mlp', 'residual'\]",
    "beta": r"\['cosine', 'cyclical', 'exponential', 'linear', 'one_cycle'\]",
}


@pytest.mark.parametrize("kind", ["gan", "", None, "VAE"])
def test_an_unknown_kind_is_refused_with_the_kinds_there_are(kind: object) -> None:
    values = to_dict(vae(beta=ramp()))
    with pytest.raises(ValueError, match=f"kind: expected one of {KINDS}, got"):
        model_from_dict({**values, "kind": kind})
    for field, kinds in NESTED.items():
        with pytest.raises(ValueError, match=f"kind: expected one of {kinds}, got"):
            model_from_dict({**values, field: {**values[field], "kind": kind}})


@pytest.mark.parametrize("make", MODELS)
def test_a_missing_kind_is_refused(make: Any) -> None:
    values = to_dict(make())
    del values["kind"]
    with pytest.raises(ValueError, match="kind: expected one of"):
        model_from_dict(values)


@pytest.mark.parametrize("make", MODELS)
def test_unknown_keys_are_refused_by_name(make: Any) -> None:
    values, name = to_dict(make()), type(make()).__name__
    with pytest.raises(ValueError, match=rf"{name} has no field \['latent', 'speed'\]"):
        model_from_dict({**values, "speed": 3, "latent": 2})
    network = type(make().network).__name__
    with pytest.raises(ValueError, match=rf"{network} has no field \['depth'\]"):
        model_from_dict({**values, "network": {**values["network"], "depth": 3}})


def test_unknown_keys_of_a_schedule_are_refused_by_name() -> None:
    values = to_dict(vae(beta=ramp()))
    with pytest.raises(ValueError, match=r"RampConfig has no field \['steps'\]"):
        model_from_dict({**values, "beta": {**values["beta"], "steps": 3}})


WORDS = [
    (vae, "likelihood"),
    (vae, "condition"),
    (vae, "prior"),
    (vae, "sigma"),
    (iwae, "gradient"),
    (vqvae, "codebook"),
    (vqvae2, "distance"),
    (vqvae, "start"),
    (categorical, "estimator"),
]


@pytest.mark.parametrize(("make", "field"), WORDS)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected .+, got 'other'"):
        model_from_dict({**to_dict(make()), field: "other"})


def test_a_value_out_of_range_in_a_dictionary_is_refused_by_name() -> None:
    with pytest.raises(RangeError, match="latent_dim"):
        model_from_dict({**to_dict(vae()), "latent_dim": 0})
    with pytest.raises(RangeError, match="until"):
        model_from_dict({**to_dict(vae()), "beta": {**to_dict(ramp()), "until": 2.0}})


@pytest.mark.parametrize("make", FACTORIES)
def test_configurations_are_frozen_and_refuse_unknown_keywords(make: Any) -> None:
    config = make()
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


@pytest.mark.parametrize("make", FACTORIES)
def test_pydantic_is_told_to_be_strict(make: Any) -> None:
    assert make().__pydantic_config__ == {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def test_the_shape_of_the_data_is_channels_height_width() -> None:
    colour = DataSpec(channels=3, height=4, width=6)
    assert colour.shape == (3, 4, 6)
    assert colour.pixels == 72
    assert (colour.num_classes, colour.attributes, colour.embedding) == (0, 0, 0)
    assert DIGITS.pixels == 64
