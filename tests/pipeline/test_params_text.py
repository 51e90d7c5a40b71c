"""Other values in params.yaml: nothing else in the file changes."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.errors import UserError
from pipeline.tune.config import Scalar
from pipeline.tune.params_text import with_values

SHIPPED = (Path(__file__).parents[2] / "params.yaml").read_text()

TEXT = """\
# a comment
models:
    vae: {beta: 1.0, kind: 'vae', network: {hidden: [32]}}   # flow
    other:

        # within
        beta: 2.0      # aligned
        name: "x"

train: {}
empty: null   # stays
"""


def test_without_values_the_text_is_as_it_was() -> None:
    assert with_values(SHIPPED, {}) == SHIPPED


def test_in_the_file_that_comes_with_the_project_only_the_values_change() -> None:
    changed = with_values(SHIPPED, {"models.vae.beta": 0.25, "train.learning_rate.peak": 0.0009})
    lines = [new for old, new in zip(SHIPPED.split("\n"), changed.split("\n"), strict=True) if old != new]
    assert [line.split("#")[0].strip() for line in lines] == [
        "beta: 0.25",
        "learning_rate: {kind: one_cycle, peak: 0.0009, warmup: 0.3}",
    ]


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("models.vae.beta", 0.5, "beta: 1.0,", "beta: 0.5,"),
        ("models.vae.kind", "cvae", "'vae'", "cvae"),
        ("models.other.beta", 3, "2.0      #", "3      #"),
        ("models.other.name", "a: b", '"x"', '"a: b"'),
        ("models.other.name", "1", '"x"', '"1"'),
        ("models.other.name", "null", '"x"', '"null"'),
        ("models.other.beta", 1e-5, "2.0      #", "1.0e-05      #"),
        ("models.vae.network.depth", 2, "{hidden", "{depth: 2, hidden"),
        ("models.other.latent.dim", 2, "        beta: 2.0", "        latent: {dim: 2}\n        beta: 2.0"),
        ("train.epochs", 3, "train: {}", "train: {epochs: 3}"),
    ],
)
def test_one_place_changes(key: str, value: Scalar, old: str, new: str) -> None:
    assert with_values(TEXT, {key: value}) == TEXT.replace(old, new)


@pytest.mark.parametrize("value", [1, -3, 0.1, 1e-7, 123456789.5, 3e22, "word", "3e-4", "~", "#", "a\nb", "ü", ""])
def test_a_value_is_read_as_it_was_given(value: Scalar) -> None:
    for key in ("models.vae.beta", "models.other.beta", "train.new"):
        read = YAML(typ="safe").load(with_values(TEXT, {key: value}))
        for part in key.split("."):
            read = read[part]
        assert (read, type(read)) == (value, type(value))


def test_a_section_that_others_share_is_not_changed_for_all() -> None:
    shared = "models:\n  vae: &net {beta: 1.0}\n  other: *net\n"
    with pytest.raises(UserError, match=r"share one of models\.vae\.beta by an alias"):
        with_values(shared, {"models.vae.beta": 2.0})
