"""params.yaml: every mistake is one line that names file, line, key and remedy; every key is read by someone."""

import ast
import copy
import dataclasses
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from pipeline.closure import PACKAGES, ROOT
from pipeline.config import Params, apply_overrides, fingerprint, load_params
from pipeline.errors import UserError
from pipeline.operate.deps import UNTRACKED, parameters, rewrite
from pipeline.tune.config import Range
from vae_core.config import MLPConfig, VAEConfig, to_dict

DVC_YAML = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
STAGES: dict[str, Any] = YAML(typ="safe").load(DVC_YAML)["stages"]
SHIPPED = load_params(ROOT / "params.yaml")
SECTIONS = "data, shard, families, models, features, train, tune, prior, evaluate, export, report, retrain, compute"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes) -> Params:
        Path("params.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_params()

    return load


# What is replaced, by what, text on the line that the message names, and the message after the line number.
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "typo in a key": (
        "learning_rate:", "learning_rat:", "learning_rat:",
        "train.learning_rat: unknown key; did you mean 'learning_rate'?"),
    "typo in a section": ("prior: {}", "priors: {}", "priors:", "priors: unknown key; did you mean 'prior'?"),
    "typo in a nested key": (
        "channels: 8", "chanels: 8", "chanels", "models.vqvae.network.chanels: unknown key; did you mean 'channels'?"),
    "typo in the key of a kind": (
        "kind: digits", "knd: digits", "knd", "data.source.knd: unknown key; did you mean 'kind'?"),
    "typo in the key of a network's kind": (
        "kind: conv", "kin: conv", "kin: conv", "models.vqvae.network.kin: unknown key; did you mean 'kind'?"),
    "key of another kind": (
        "hidden: [32]", "hidden: [32], depth: 3", "depth",
        "models.vae.network.depth: unknown key; known: activation, hidden, kind"),
    "typo in a limit": (
        "retrain: {}", "retrain: {limits: {mse: {mx: 3.0}}}", "retrain",
        "retrain.limits.mse.mx: unknown key; did you mean 'max'?"),
    "limit that limits nothing": (
        "retrain: {}", "retrain: {limits: {mse: {}}}", "retrain",
        "retrain.limits.mse.min: expected a number here or for max, got None"),
    "negative gain": (
        "retrain: {}", "retrain: {min_gain: -1.0}", "retrain",
        "retrain.min_gain: expected a number of at least 0, got -1.0"),
    "drift beyond one": (
        "retrain: {}", "retrain: {drift: {mean: 1.5}}", "retrain",
        "retrain.drift.mean: expected a number from 0 to 1, or null, got 1.5"),
    "string for a number": ("epochs: 2", "epochs: '2'", "epochs: ", "train.epochs: expected an integer, got '2'"),
    "word for a number": (
        "max_grad_norm: 1000.0", "max_grad_norm: yes", "max_grad_norm",
        "train.max_grad_norm: expected a number, got 'yes'"),
    "nothing for a number": (
        "max_grad_norm: 1000.0", "max_grad_norm:", "max_grad_norm", "train.max_grad_norm: expected a number, got None"),
    "fraction for a count": ("epochs: 2", "epochs: 2.0", "epochs", "train.epochs: expected an integer, got 2.0"),
    "bool for a count": ("epochs: 2", "epochs: true", "epochs", "train.epochs: expected an integer, got True"),
    "number for text": ("title: Digits", "title: 3", "title", "report.title: expected text, got 3"),
    "empty batch": (
        "global_batch_size: 128", "global_batch_size: 0", "global_batch_size",
        "train.global_batch_size: expected an integer of at least 1, got 0"),
    "whole fraction": (
        "test_fraction: 0.2", "test_fraction: 1", "test_fraction",
        "data.test_fraction: expected a number between 0 and 1, both excluded, got 1.0"),
    "not a number": (
        "max_grad_norm: 1000.0", "max_grad_norm: .nan", "max_grad_norm",
        "train.max_grad_norm: expected a finite number, got nan"),
    "word for a schedule": (
        "{kind: one_cycle, peak: 0.002, warmup: 0.3}", "fast", "learning_rate",
        "train.learning_rate: expected a number or a section with keys, got 'fast'"),
    "unknown schedule": (
        "kind: one_cycle,", "kind: one_cycl,", "learning_rate",
        "train.learning_rate.kind: expected 'linear' or 'cosine' or 'exponential' or 'cyclical' or 'one_cycle', "
        "got 'one_cycl'; did you mean 'one_cycle'?"),
    "schedule out of range": (
        "peak: 0.002", "peak: -1.0", "learning_rate",
        "train.learning_rate.peak: expected a number above 0, got -1.0"),
    "infinity": (
        "max_grad_norm: 1000.0", "max_grad_norm: .inf", "max_grad_norm",
        "train.max_grad_norm: expected a finite number, got inf"),
    "item of a list": (
        "hidden: [32]", "hidden: [32, x]", "hidden", "models.vae.network.hidden.1: expected an integer, got 'x'"),
    "item out of range": (
        "hidden: [32]", "hidden: [32, 0]", "hidden",
        "models.vae.network.hidden: expected at least one width, each at least 1, got (32, 0)"),
    "number for a list": ("hidden: [32]", "hidden: 32", "hidden", "models.vae.network.hidden: expected a list, got 32"),
    "number for a section": ("prior: {}", "prior: 3", "prior", "prior: expected a section with keys, got 3"),
    "unknown kind of model": (
        "kind: vqvae", "kind: vqva", "kind: vqva",
        "models.vqvae.kind: expected another kind, got 'vqva'; did you mean 'vqvae'?"),
    "missing kind of model": (
        "    kind: vqvae\n", "", "  vqvae:", "models.vqvae.kind: missing, and it has no default"),
    "unknown kind of network": (
        "kind: mlp", "kind: mpl", "kind: mpl",
        "models.vae.network.kind: expected 'mlp' or 'conv' or 'residual', got 'mpl'; did you mean 'mlp'?"),
    "unknown kind of source": (
        "kind: digits", "kind: digit", "source",
        "data.source.kind: expected another kind, got 'digit'; did you mean 'digits'?"),
    "source like no other": (
        "kind: digits", "kind: 7", "source",
        "data.source.kind: expected 'mnist' or 'fashion_mnist' or 'digits' or 'image_folder' or 'parquet' or "
        "'huggingface' or 'npz' or 'npy' or 'webdataset' or 'frey_face' or 'dsprites' or 'wav', got '7'"),
    "missing key of a kind": (
        "kind: digits", "kind: image_folder", "source", "data.source.path: missing, and it has no default"),
    "item of a fixed list": (
        "source: {kind: digits}", "source: {kind: parquet, path: x, shape: [1, 2]}", "source",
        "data.source.shape.2: missing, and it has no default"),
    "typo in a list of sections": (
        "source: {kind: digits}", "source: {kind: digits}\n  append: [{kind: npz, pth: x}]", "append",
        "data.append.0.pth: unknown key; did you mean 'path'?"),
    "kind that another family has": (
        "{kind: conv, channels: 8, downsamples: 2}", "{kind: mlp, hidden: [8]}", "hidden: [8]",
        "models.vqvae.network.kind: expected 'conv' or 'residual', got 'mlp'"),
    "choice between types": (
        "workers: auto", "workers: many", "workers",
        "compute.workers: expected an integer or a list or 'auto', got 'many'"),
    "a list of the wrong type": (
        "workers: auto", "workers: [one, 2]", "workers", "compute.workers.0: expected an integer, got 'one'"),
    "more at least than at most": (
        "workers: auto", "workers: [8, 1]", "workers",
        "compute.workers: expected auto, an integer of at least 1, or [least, most] of them, got (8, 1)"),
    "choice of words": (
        "scheduler: halving", "scheduler: hyperband", "scheduler",
        "tune.search.scheduler: expected 'halving', 'none', 'asha' or 'pbt', got 'hyperband'"),
    "missing section": ("prior: {}\n", "", "data:", "prior: missing, and it has no default"),
    "missing key": ("  epochs: 2\n", "", "train:", "train.epochs: missing, and it has no default"),
    "duplicate key": (
        "  epochs: 2\n", "  epochs: 2\n  epochs: 3\n", "  epochs: 3",
        'not valid YAML: found duplicate key "epochs" with value "3" (original value: "2")'),
    "tab": (
        "  epochs: 2\n", "\tepochs: 2\n", "\tepochs",
        "not valid YAML: found character '\\t' that cannot start any token"),
    "open bracket": ("epochs: 2", "epochs: [2", "global_batch", "not valid YAML: expected ',' or ']', but got ':'"),
    "family without a model": (
        "families: [vae, vqvae]", "families: [vae, vqvea]", "families",
        "families.1: no model of this name: 'vqvea'; did you mean 'vqvae'?"),
    "family twice": (
        "families: [vae, vqvae]", "families: [vae, vae]", "families",
        "families: expected at least one name, each once, got ['vae', 'vae']"),
    "no family": (
        "families: [vae, vqvae]", "families: []", "families",
        "families: expected at least one name, each once, got []"),
    "family without a space": (
        "    vqvae: {}\n", "", "  spaces:",
        "tune.spaces: no entry for the family 'vqvae'; add one ({} for no sweep)"),
    "space without a model": (
        "    vqvae: {}\n", "    vqvae: {}\n    vqvea: {}\n", "vqvea",
        "tune.spaces.vqvea: no model of this name; did you mean 'vqvae'?"),
    "typo in a swept key": ("beta: [", "bet: [", "bet: [", "tune.spaces.vae.bet: unknown key; did you mean 'beta'?"),
    "typo in a nested swept key": (
        "beta: [0.5, 1.0]", "network.activatoin: [relu]", "activatoin",
        "tune.spaces.vae.network.activatoin: unknown key; did you mean 'network.activation'?"),
    "swept kind": (
        "beta: [0.5, 1.0]", "kind: [vae]", "kind: [vae]",
        "tune.spaces.vae.kind: unknown key; "
        "known: beta, capacity, condition, condition_dropout, free_bits, latent_dim, likelihood, network.activation, "
        "network.hidden, prior, samples, sigma, total_correlation, train.compile, train.ema_decay, train.epochs, "
        "train.global_batch_size, train.lanes, train.learning_rate.peak, train.learning_rate.warmup, "
        "train.max_grad_norm, train.max_skipped_steps, train.precision, train.seed, train.window_shards"),
    "swept value out of range": (
        "beta: [0.5, 1.0]", "beta: [0.5, -1.0]", "beta",
        "tune.spaces.vae.beta: expected a number of at least 0, or a schedule of such, got -1.0"),
    "swept value of another type": (
        "beta: [0.5, 1.0]", "latent_dim: [2, 2.5]", "latent_dim: [",
        "tune.spaces.vae.latent_dim: expected an integer, got 2.5"),
    "swept value no number": (
        "beta: [0.5, 1.0]", "beta: [.inf]", "beta: [",
        "tune.spaces.vae.beta.0: expected an integer or a finite number or text, got inf"),
    "swept bool": (
        "beta: [0.5, 1.0]", "beta: [true]", "beta: [",
        "tune.spaces.vae.beta.0: expected an integer or a number or text, got True"),
    "swept value twice": (
        "beta: [0.5, 1.0]", "beta: [1, 1.0]", "beta: [",
        "tune.spaces.vae.beta: expected each value once, got [1, 1.0]"),
    "swept key of the training": (
        "beta: [0.5, 1.0]", "train.epochs: [2, 0]", "train.epochs", "tune.spaces.vae.train.epochs: expected an integer "
        "of at least 1, got 0"),
    "swept section": (
        "beta: [0.5, 1.0]", "train.learning_rate: [0.1]", "train.learning_rate",
        "tune.spaces.vae.train.learning_rate: expected a key with a single value; it has train.learning_rate.peak, "
        "train.learning_rate.warmup"),
    "typo in a range": (
        "beta: [0.5, 1.0]", "beta: {low: 0.5, high: 1.0, setp: 0.1}", "beta",
        "tune.spaces.vae.beta.setp: unknown key; did you mean 'step'?"),
    "range without an end": (
        "beta: [0.5, 1.0]", "beta: {low: 0.5}", "beta", "tune.spaces.vae.beta.high: missing, and it has no default"),
    "range the wrong way round": (
        "beta: [0.5, 1.0]", "beta: {low: 1.0, high: 0.5}", "beta",
        "tune.spaces.vae.beta.high: expected a number above low, got 0.5"),
    "end of a range out of range": (
        "beta: [0.5, 1.0]", "beta: {low: -1.0, high: 0.5}", "beta",
        "tune.spaces.vae.beta: expected a number of at least 0, or a schedule of such, got -1.0"),
    "grid over a range without steps": (
        "    seed: 0\n    scheduler: halving\n    rungs: [1]\n  spaces:\n    vae:\n      beta: [0.5, 1.0]\n",
        "    seed: 0\n    kind: grid\n    scheduler: halving\n    rungs: [1]\n  spaces:\n    vae:\n"
        "      beta: {low: 0.5, high: 1.0}\n", "beta: {low",
        "tune.spaces.vae.beta: expected a list, or a range with a step, for tune.search.kind: grid"),
    "population suggested one by one": (
        "scheduler: halving", "scheduler: pbt\n    kind: tpe", "kind: tpe",
        "tune.search.kind: expected grid, random or sobol with scheduler: pbt, got 'tpe'"),
    "objective twice": (
        "  spaces:\n", "  metric: [rate_nats, rate_nats]\n  spaces:\n", "metric",
        "tune.metric: expected each figure once, got ('rate_nats', 'rate_nats')"),
    "neither list nor range": (
        "beta: [0.5, 1.0]", "beta: 3", "beta",
        "tune.spaces.vae.beta: expected a list or a section with keys, got 3"),
    "no swept value": ("beta: [0.5, 1.0]", "beta: []", "beta: [", "tune.spaces.vae.beta: expected at least one value"),
    "rungs that fall": (
        "rungs: [1]", "rungs: [2, 1]", "rungs",
        "tune.search.rungs: expected epochs of at least 1, each above the one before, got (2, 1)"),
    "rung at the last epoch": (
        "rungs: [1]", "rungs: [1, 2]", "rungs", "tune.search.rungs: expected epochs below train.epochs (2)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_line_and_key(load: Any, params_text: str, mistake: str) -> None:
    old, new, at, message = MISTAKES[mistake]
    assert params_text.count(old) == 1
    text = params_text.replace(old, new)
    line = text[: text.index(at)].count("\n") + 1
    with pytest.raises(UserError) as error:
        load(text)
    assert str(error.value) == f"params.yaml:{line}: {message}"


def test_mistakes_are_reported_together(load: Any, params_text: str) -> None:
    text = params_text.replace("epochs: 2", "epochs: 0").replace("beta: [", "bet: [").replace("title: D", "titel: D")
    with pytest.raises(UserError) as error:
        load(text)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["train.epochs", "report.titel"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"params.yaml:1: expected the sections {SECTIONS}; found none"),
        (b"- 1\n", f"params.yaml:1: expected the sections {SECTIONS}; found none"),
        (b"just text", f"params.yaml:1: expected the sections {SECTIONS}; found none"),
        (b"a: b: c", "params.yaml:1: not valid YAML: mapping values are not allowed here"),
        (b"\xff\xfe\x00", "params.yaml: not UTF-8 text (invalid start byte at byte 0); save it as UTF-8"),
        (
            b"a: \x07",
            "params.yaml: not valid YAML: unacceptable character #x0007: special characters are not allowed",
        ),
    ],
)
def test_a_file_without_sections_is_one_line(load: Any, content: bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(content)
    assert str(error.value) == message


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params.yaml: no such file; run from the project's folder"):
        load_params(tmp_path / "params.yaml")


@given(st.binary(max_size=50) | st.text(alphabet="ab0:-[]{}&*!<|>?%@'\"#., \n\t", max_size=50).map(str.encode))
def test_any_other_content_is_refused_in_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"any\.yaml"):
        load_params(path)


def test_the_shipped_file_is_right() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(params.families) <= set(params.models)


def test_the_environment_says_where_this_process_runs(
    load: Any, params_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(params_text)
    monkeypatch.setenv("PIPELINE_COMPUTE", '{"workers": [1, 8], "storage": "s3://bucket/runs"}')
    changed = load(params_text)
    assert (changed.compute.workers, changed.compute.storage) == ((1, 8), "s3://bucket/runs")
    assert dataclasses.replace(changed, compute=plain.compute) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"worker": 2}', "PIPELINE_COMPUTE: compute.worker: unknown key; did you mean 'workers'?"),
        ('{"threads": 0}', "PIPELINE_COMPUTE: compute.threads: expected auto or an integer of at least 1, got 0"),
        ("workers=2", "PIPELINE_COMPUTE: expected a JSON object such as {\"workers\": 2}, got 'workers=2'"),
        ("[2]", "PIPELINE_COMPUTE: expected a JSON object such as {\"workers\": 2}, got '[2]'"),
    ],
)
def test_mistakes_in_the_environment_name_it(
    load: Any, params_text: str, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("PIPELINE_COMPUTE", text)
    with pytest.raises(UserError) as raised:
        load(params_text)
    assert str(raised.value) == message


def test_numbers_are_those_of_yaml_1_2(load: Any, params_text: str) -> None:
    text = params_text.replace("{kind: one_cycle, peak: 0.002, warmup: 0.3}", "1e-3").replace("1000.0", "1000")
    params = load(text.replace("title: Digits", "title: on").replace("epochs: 2", "epochs: 0o10"))
    assert (params.train.learning_rate, params.report.title, params.train.epochs) == (0.001, "on", 8)
    assert isinstance(params.train.max_grad_norm, float)


def test_anchors_and_merges_are_followed(load: Any, params_text: str) -> None:
    text = params_text.replace("  vae:\n    kind", "  vae: &vae\n    kind").replace(
        "  vqvae:\n    kind", "  cvae:\n    <<: *vae\n    condition: label\n  vqvae:\n    kind"
    )
    models = load(text).models
    assert models["cvae"] == dataclasses.replace(models["vae"], condition="label")


def classes(kind: Any = Params) -> Iterator[type]:
    """Every configuration class that `kind` holds."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from classes(hint)
    for argument in typing.get_args(kind):
        yield from classes(argument)


CLASSES = sorted(set(classes()), key=lambda kind: kind.__name__)


def test_the_walk_finds_every_configuration_class() -> None:
    some = {
        "Params",
        "PublishedSource",
        "Columns",
        "SearchConfig",
        "VAEConfig",
        "VQVAEConfig",
        "ConvConfig",
    }
    assert some <= {kind.__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_refuses_an_unknown_key(kind: type) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(kind).validate_json('{"nonsense": 1}')
    assert ("unexpected_keyword_argument", ("nonsense",)) in [(e["type"], e["loc"]) for e in error.value.errors()]
    with pytest.raises(TypeError, match="nonsense"):
        kind(nonsense=1)


NUMBERS = [(kind, field.name) for kind in CLASSES for field in dataclasses.fields(kind) if field.type is float]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=[f"{kind.__name__}.{name}" for kind, name in NUMBERS])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "true", '"1.0"'])
def test_every_number_refuses_what_is_none(kind: type, name: str, value: str) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(kind).validate_json(f'{{"{name}": {value}}}')
    assert {e["type"] for e in error.value.errors() if e["loc"] == (name,)} <= {"finite_number", "float_type"}
    assert name in {e["loc"][0] for e in error.value.errors()}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (p for p in (ROOT / package).rglob("*.py") if "config" not in f"{p.parent.name} {p.name}")


def test_every_key_is_read_by_code() -> None:
    """A key that nobody reads would be accepted and do nothing."""
    nodes = [node for path in sources() for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    weighed = {node.value for node in nodes if isinstance(node, ast.Constant)}  # inputs.weights["beta"]
    read |= weighed & {name for kind in CLASSES for name in getattr(kind, "SCHEDULED", ())}
    by_branch = {"kind"}  # pydantic and `match` read it, as the class
    keys = {field.name for kind in CLASSES for field in dataclasses.fields(kind)}
    assert keys - by_branch - read == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_exactly_the_parameters_it_reads(stage: str) -> None:
    assert STAGES[stage]["params"] == parameters(stage)


def test_every_section_is_a_dependency_of_some_stage_but_where_it_runs_and_what_is_promoted() -> None:
    listed = {key.split(".")[0] for stage in STAGES.values() for key in stage["params"]}
    assert listed == set(Params.__slots__) - {"compute", "retrain"}
    assert set(UNTRACKED) & set().union(*(stage["params"] for stage in STAGES.values())) == set()


def test_the_committed_dvc_yaml_is_exact() -> None:
    assert rewrite(DVC_YAML, SHIPPED) == DVC_YAML


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("      - pipeline/train/loop.py\n", ""),
        ("      - vae_core/config/data.py\n", ""),
        ("      - pipeline/export/card.md\n", ""),
        ("    params:\n      - evaluate\n", "    params:\n      - evaluate\n      - compute\n"),
        ("    params:\n      - shard\n", "    params: []\n"),
        ("      - pipeline/stages/shard.py\n", "      - pipeline/stages/shard.py\n      - pipeline/report/page.py\n"),
        ("  wake-sleep:\n    path: artifacts/wake_sleep\n", "  gone:\n    path: artifacts/gone\n"),
        ("    path: artifacts/vqvae2\n", "    path: artifacts/vqvae\n"),
    ],
)
def test_a_changed_dvc_yaml_is_put_right(old: str, new: str) -> None:
    assert old in DVC_YAML
    assert rewrite(DVC_YAML.replace(old, new), SHIPPED) == DVC_YAML


MODEL = VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(8,)))


TRAIN = SHIPPED.train


def test_overrides_replace_values_at_any_depth() -> None:
    model, train = apply_overrides(
        MODEL, TRAIN, {"beta": 2, "network.activation": "tanh", "train.learning_rate.peak": 0.5, "train.epochs": 3}
    )
    assert model == dataclasses.replace(MODEL, beta=2.0, network=dataclasses.replace(MODEL.network, activation="tanh"))
    assert train == dataclasses.replace(
        TRAIN,
        epochs=3,
        learning_rate=dataclasses.replace(TRAIN.learning_rate, peak=0.5),  # type: ignore[type-var]
    )
    assert fingerprint(model) == fingerprint(apply_overrides(model, TRAIN, {"beta": 2.0})[0]), "2 and 2.0 are one run"
    assert MODEL.beta == 1.0
    assert apply_overrides(MODEL, TRAIN, {}) == (MODEL, TRAIN)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (Range(low=1, high=4), (1, 2, 3, 4)),
        (Range(low=2, high=9, step=3), (2, 5, 8)),
        (Range(low=0.5, high=1.0, step=0.25), (0.5, 0.75, 1.0)),
        (Range(low=0.5, high=1.0), None),
        (Range(low=1, high=1000, log=True), tuple(range(1, 1001))),
    ],
)
def test_a_range_counts_its_values_where_it_can(given: Range, values: tuple[float, ...] | None) -> None:
    assert given.values == values
    assert given.integer is (values is not None and isinstance(values[0], int))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bta": 1.0}, "unknown key; did you mean 'beta'?"),
        ({"network.hiden": 1}, "unknown key; did you mean 'network.hidden'?"),
        ({"beta.x": 1}, "unknown key; did you mean 'beta'?"),
        ({"latent_dim": 0}, "expected a number of at least 1, got 0"),
        ({"latent_dim": "3"}, "expected an integer, got '3'"),
        (
            {"likelihood": "poisson"},
            "expected 'bernoulli', 'continuous_bernoulli', 'gaussian' or 'discretised_logistic', got 'poisson'",
        ),
        ({"beta": float("nan")}, "expected a finite number, got nan"),
    ],
)
def test_overrides_are_checked_like_the_file(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"expected|unknown") as error:
        apply_overrides(MODEL, TRAIN, overrides)
    assert str(error.value) == message


def test_a_fingerprint_is_the_same_in_every_process(tmp_path: Path, params_text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(params_text)
    code = (
        "import sys; from pathlib import Path; from pipeline.config import *; "
        "print(fingerprint(load_params(Path(sys.argv[1]))))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, env={"PYTHONHASHSEED": seed}, text=True,
            check=True, capture_output=True).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {fingerprint(load_params(path))}


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        nested = leaves(value, (*path, field.name)) if dataclasses.is_dataclass(value) else [(*path, field.name)]
        yield from nested


def test_a_fingerprint_changes_with_every_field(load: Any, params_text: str) -> None:
    params = load(params_text)
    found = {fingerprint(params), fingerprint(params.models["vae"])}
    count = 2
    for root in (params, params.models["vae"], params.models["vqvae"]):
        for path in leaves(root):
            changed = copy.deepcopy(root)
            node: Any = changed
            for part in path[:-1]:
                node = getattr(node, part)
            object.__setattr__(node, path[-1], "changed")
            found.add(fingerprint(changed))
            count += 1
    assert len(found) == count > 50


@given(st.permutations(["kind", "latent_dim", "network", "beta"]))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(order: list[str]) -> None:
    values = {name: to_dict(MODEL)[name] for name in order}
    assert fingerprint(TypeAdapter(VAEConfig).validate_json(json.dumps(values))) == fingerprint(MODEL)
