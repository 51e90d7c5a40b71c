"""`python -m pipeline decode` on tables from strangers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import UserError
from pipeline.operate._shown import Trained
from pipeline.operate.decode import _metadata, _opened, decoded
from pipeline.operate.encode import METADATA
from vae_core.config import ConvConfig, DataSpec, MLPConfig, ModelConfig, VAEConfig, VQVAEConfig
from vae_core.models import build_model

DATA = DataSpec(channels=1, height=4, width=4, num_classes=3)
MLP = MLPConfig(kind="mlp", hidden=(4,))
LATENT = VAEConfig(kind="vae", latent_dim=2, network=MLP)
LABEL = VAEConfig(kind="vae", latent_dim=2, network=MLP, condition="label")
CODES = VQVAEConfig(kind="vqvae", num_codes=4, code_dim=2, network=ConvConfig(kind="conv", channels=4, downsamples=1))
TWO = [[0.5, 1.0]] * 6


def trained(config: ModelConfig) -> Trained:
    return Trained("f", "best", build_model(config, DATA, seed=0).eval(), torch.device("cpu"), "digest", {"model": {}})


def decode(
    config: ModelConfig, columns: dict[str, Any], path: Path = Path("a.parquet"), rows: int | None = None
) -> int:
    """How many rows come of a table of these columns."""
    pq.write_table(pa.table(columns), path)
    with _opened(path) as file:
        _metadata(file, path)
        return sum(map(len, decoded(file, path, trained(config), 4, rows or file.metadata.num_rows)))


def test_what_encode_writes_is_decoded(home: Path) -> None:
    for kind in (pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.list_(pa.uint8()), pa.list_(pa.float16())):
        assert (
            decode(LATENT, {"latent": pa.array(np.array(TWO).tolist(), pa.list_(pa.float64())).cast(kind, safe=False)})
            == 6
        )
    for code in (pa.int32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        assert decode(CODES, {"codes_0": pa.array([[0, 1, 2, 3]] * 6, pa.list_(code))}) == 6
    for label in (pa.int64(), pa.uint8(), pa.uint64()):
        assert decode(LABEL, {"latent": TWO, "label": pa.array([0, 1, 2] * 2, label)}) == 6


LATENTS: dict[str, Any] = {
    "text": ["x"] * 6,
    "lists of text": [["a", "b"]] * 6,
    "nested": [[[1.0], [2.0]]] * 6,
    "sections": [{"a": 1}] * 6,
    "null": [None] * 6,
    "a number missing": [[None, 1.0]] * 6,
    "infinite": [[float("inf"), 1.0]] * 6,
    "not a number": [[float("nan"), 1.0]] * 6,
    "too long": [[1.0] * 1000] * 6,
    "lengths differ": [[1.0, 2.0], [1.0]] * 3,
    "a dictionary": pa.array(["a"] * 6).dictionary_encode(),
    "dates": pa.array([[1, 2]] * 6, pa.list_(pa.date32())),
    "times": pa.array([[1, 2]] * 6, pa.list_(pa.timestamp("us"))),
    "decimals": pa.array([[1, 2]] * 6, pa.list_(pa.decimal128(5))),
    "true and false": [[True, False]] * 6,
    "bytes": [b"\x80\x04K*."] * 6,
    "a tensor type": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((6, 2, 1), np.float32)),
    "large lists": pa.array(TWO, pa.large_list(pa.float32())),
}


@pytest.mark.parametrize("case", LATENTS)
def test_latents_that_are_none_are_one_line(home: Path, case: str) -> None:
    with pytest.raises(UserError, match=r"^a\.parquet: [^\n]*$"):
        decode(LATENT, {"latent": LATENTS[case]})


@pytest.mark.parametrize(
    "codes",
    [
        *(pa.array([[0, 1, 2, code]] * 6) for code in (4, -1, 2**62)),
        pa.array([[0, 1, 2, 2**63]] * 6, pa.list_(pa.uint64())),
        pa.array([[0.0, 1.0, 2.0, 3.0]] * 6),
    ],
)
def test_codes_that_are_none_are_one_line(home: Path, codes: pa.Array) -> None:
    with pytest.raises(UserError, match=r"^a\.parquet: column 'codes_0': expected [^\n]*$"):
        decode(CODES, {"codes_0": codes})


@pytest.mark.parametrize(
    "label",
    [["x"] * 6, [0.5] * 6, [3] * 6, [-1] * 6, [None] * 6, [0, None] * 3, [[0]] * 6, [True] * 6, [b"0"] * 6,
     pa.array([2**63] * 6, pa.uint64()), pa.array([1] * 6, pa.date32()), pa.array([1] * 6, pa.timestamp("us")),
     pa.array([1] * 6, pa.decimal128(5)), pa.array(["0"] * 6).dictionary_encode()],
)  # fmt: skip
def test_labels_that_are_none_are_one_line(home: Path, label: Any) -> None:
    with pytest.raises(
        UserError, match=r"^a\.parquet: column 'label': expected whole numbers from 0 to 2; restore the file$"
    ):
        decode(LABEL, {"latent": TWO, "label": label})


def test_a_table_that_ends_before_it_says_is_one_line(home: Path) -> None:
    with pytest.raises(UserError, match=r"^a\.parquet: expected 9 rows, found 6; restore the file$"):
        decode(LATENT, {"latent": TWO}, rows=9)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "[" * 100_000, "9" * 10_000, "\x00"),
        *(json.dumps({"sample_rate": rate}) for rate in ("x", -1, 0, 2**40, 1.5, True, [])),
    ],
)
def test_metadata_that_are_none_are_one_line(home: Path, text: str) -> None:
    table = pa.table({"latent": TWO}).replace_schema_metadata({METADATA: text.encode()})
    pq.write_table(table, "a.parquet")
    with _opened(Path("a.parquet")) as file, pytest.raises(UserError, match=r"^a\.parquet: damaged metadata; [^\n]*$"):
        _metadata(file, Path("a.parquet"))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1", b"\x80\x04K*."])
def test_what_is_no_parquet_is_one_line(home: Path, data: bytes) -> None:
    (home / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"^a\.parquet: damaged \([^\n]*$"), _opened(Path("a.parquet")):
        pass
