"""Models as files: every kind comes back as it was, the same model gives the same bytes, damage is named."""

import json
import pickle
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from core_models import (
    DIGITS,
    EVERY_KIND,
    FAMILIES,
    assert_same_state,
    digits,
    digits_model,
    noise_of,
    sgd,
    step_once,
    vae,
)
from torch import Tensor

from vae_core.config import DataSpec, ModelConfig, RampConfig
from vae_core.models import Model
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, describe, dump_tensors, load_model
from vae_core.training import eval_step

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())


def trained(config: ModelConfig) -> Model:
    """A model with weights, and a codebook where it has one, that `build_model` does not give."""
    model = digits_model(config, seed=3)
    step_once(model, digits(16), sgd(model), learning_rate=1e-3, max_grad_norm=10.0)
    return model


def save(model: Model, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / WEIGHTS).write_bytes(dump_tensors(model.state_dict()))
    (directory / CONFIG).write_text(json.dumps(describe(model.config, model.data)), encoding="utf-8")
    return directory


def header_of(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    return header


@every_kind
def test_a_model_comes_back_as_it_was(config: ModelConfig, tmp_path: Path) -> None:
    model, batch = trained(config), digits(8)
    back = load_model(save(model, tmp_path))
    assert type(back) is type(model)
    assert (back.config, back.data) == (config, DIGITS)
    assert_same_state(model.state_dict(), back.state_dict())
    expected, found = (eval_step(m, batch, noise_of(batch)) for m in (model.eval(), back))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@every_kind
def test_a_loaded_model_is_in_evaluation_mode_on_the_cpu(config: ModelConfig, tmp_path: Path) -> None:
    back = load_model(save(trained(config), tmp_path))
    assert not any(module.training for module in back.modules())
    assert {tensor.device.type for tensor in back.state_dict().values()} == {"cpu"}


@every_kind
def test_the_same_model_gives_the_same_bytes(config: ModelConfig, tmp_path: Path) -> None:
    model = trained(config)
    state = model.state_dict()
    data = dump_tensors(state)
    assert dump_tensors(dict(reversed(state.items()))) == data
    assert dump_tensors(trained(config).state_dict()) == data
    assert dump_tensors(load_model(save(model, tmp_path)).state_dict()) == data


@every_kind
def test_the_file_holds_the_tensors_and_nothing_else(config: ModelConfig) -> None:
    state = trained(config).state_dict()
    data = dump_tensors(state)
    header = header_of(data)
    assert set(header) == set(state)
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + sum(t.numel() * t.itemsize for t in state.values())
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError, KeyError)):
        pickle.loads(data)


def test_views_and_parameters_are_written_by_value() -> None:
    whole = torch.arange(6.0).view(2, 3)
    assert dump_tensors({"x": whole.T}) == dump_tensors({"x": whole.T.contiguous()})
    assert dump_tensors({"x": torch.nn.Parameter(whole)}) == dump_tensors({"x": whole})


@every_kind
def test_the_description_is_json_that_names_model_and_data(config: ModelConfig) -> None:
    described = json.loads(json.dumps(describe(config, DIGITS)))
    shape, columns = {"channels": 1, "height": 8, "width": 8}, {"num_classes": 10, "attributes": 2, "embedding": 3}
    assert described["data"] == {**shape, **columns}
    assert described["model"]["kind"] == config.kind
    assert described["model"]["network"]["kind"] == config.network.kind


def test_a_schedule_comes_back_as_it_was(tmp_path: Path) -> None:
    config = vae(beta=RampConfig(kind="cosine", start=0.0, end=4.0, until=0.5))
    assert load_model(save(digits_model(config), tmp_path)).config == config


VALUES = (None, [], {}, "x", -1, 0, 1.5, True, [1.5], {"kind": "mlp"}, float("nan"))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_of_another_type_raises_anything_but_the_error_that_names_the_file(
    family: str, tmp_path: Path
) -> None:
    directory = save(digits_model(FAMILIES[family]), tmp_path)
    config = json.loads((directory / CONFIG).read_text())
    refused = 0
    for field, value in product(config["model"], VALUES):
        (directory / CONFIG).write_text(json.dumps({**config, "model": {**config["model"], field: value}}))
        try:
            load_model(directory)
        except ModelFileError as error:
            refused += str(directory) in str(error)
        else:
            assert type(value) in (int, float, bool, type(None)), (field, value)
    assert refused > 0.8 * len(config["model"]) * len(VALUES)


def test_other_keys_beside_model_and_data_are_allowed(tmp_path: Path) -> None:
    directory = save(trained(EVERY_KIND["vqvae-gaussian"]), tmp_path)
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "lineage": {"data": "abc"}}))
    assert load_model(directory).config == EVERY_KIND["vqvae-gaussian"]


# damage


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text())
        change(config)
        (directory / CONFIG).write_text(json.dumps(config))

    return damage


def edit_weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_model(directory).state_dict()
        change(tensors)
        (directory / WEIGHTS).write_bytes(dump_tensors(tensors))

    return damage


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:keep]) and None


BAD_CONFIGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda directory: (directory / CONFIG).unlink(), "No such file"),
    "empty": (cut(CONFIG, 0), "Expecting value"),
    "truncated": (cut(CONFIG, 40), r"Expecting|Unterminated"),
    "not text": (lambda directory: (directory / CONFIG).write_bytes(b"\xff\xfe\x00"), "utf-8"),
    "a list": (lambda directory: (directory / CONFIG).write_text("[]"), "list indices"),
    "without the model": (edit_config(lambda config: config.pop("model")), "model"),
    "without the data": (edit_config(lambda config: config.pop("data")), "data"),
    "without the network": (edit_config(lambda config: config["model"].pop("network")), "network"),
    "unknown kind": (edit_config(lambda config: config["model"].update(kind="gan")), "expected one of"),
    "unknown network": (edit_config(lambda config: config["model"]["network"].update(kind="vit")), "expected one of"),
    "unknown key": (edit_config(lambda config: config["model"].update(latents=3)), r"no field \['latents'\]"),
    "unknown data key": (edit_config(lambda config: config["data"].update(depth=3)), "depth"),
    "missing field": (edit_config(lambda config: config["model"].pop("latent_dim")), "latent_dim"),
    "value out of range": (edit_config(lambda config: config["model"].update(latent_dim=0)), "latent_dim: expected"),
    "value of another type": (
        edit_config(lambda config: config["model"].update(latent_dim="4")),
        "latent_dim: expected int, got '4'",
    ),
    "size that does not halve": (edit_config(lambda config: config["data"].update(height=9)), "divisible by 4"),
    "no model but a word": (edit_config(lambda config: config.update(model="vae")), "expected keys and values"),
    "a word for the network": (edit_config(lambda config: config["model"].update(network="conv")), "network: expected"),
    "a number that is none": (edit_config(lambda config: config["model"].update(beta=float("nan"))), "beta: expected"),
    "a schedule that is none": (edit_config(lambda config: config["model"].update(beta={"kind": "mlp"})), "one of"),
    "no height": (edit_config(lambda config: config["data"].update(height=0)), "height: expected"),
    "no classes": (edit_config(lambda config: config["data"].update(num_classes=0)), "two classes"),
}

BAD_WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda directory: (directory / WEIGHTS).unlink(), "No such file"),
    "empty": (cut(WEIGHTS, 0), "header too small"),
    "truncated header": (cut(WEIGHTS, 30), "header"),
    "truncated data": (cut(WEIGHTS, -8), "incomplete"),
    "a pickle": (lambda directory: (directory / WEIGHTS).write_bytes(pickle.dumps({"x": 1})), "header"),
    "torn": (lambda directory: (directory / WEIGHTS).write_bytes(b"\0" * 500), "header"),
    "a tensor too few": (edit_weights(lambda tensors: tensors.pop("to_posterior.bias")), "to_posterior.bias"),
    "a tensor too many": (edit_weights(lambda tensors: tensors.update(extra=torch.ones(1))), "extra"),
    "another shape": (
        edit_weights(lambda tensors: tensors.update({"to_posterior.bias": torch.ones(3)})),
        "size mismatch",
    ),
    "another model": (edit_config(lambda config: config["model"].update(latent_dim=5)), "size mismatch"),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(trained(EVERY_KIND["vae-conv-gaussian-label"]), tmp_path / "model")


@pytest.mark.parametrize(("damage", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_damaged_configuration_is_refused_by_name(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(saved)
    assert str(saved / CONFIG) in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_damaged_weights_are_refused_by_name(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_model(saved)
    assert str(saved / WEIGHTS) in str(caught.value)


def test_a_model_for_other_images_is_refused(tmp_path: Path) -> None:
    directory = save(trained(EVERY_KIND["vae-mlp-bernoulli-none"]), tmp_path)
    edit_config(lambda config: config.update(data={"channels": 3, "height": 8, "width": 8}))(directory)
    with pytest.raises(ModelFileError, match="size mismatch"):
        load_model(directory)
    assert DataSpec(channels=3, height=8, width=8).num_classes == 0
