"""write the latents or codes of every image as a trained model sees them -> FILE.parquet"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate import _saved, _shown

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from pipeline.data.loader import Split
    from vae_core.batch import Batch

METADATA = b"vae_pipeline"  # key of the schema's metadata; its value is JSON
VERSION = 1
SPLITS = ("train", "val", "test")
GROUP_BYTES = 16 * 1024**2  # of a row group
GROUP_ROWS = 65_536
NOTE = """\
Columns: id, split, label (where there are labels); `latent`, the posterior's mean, or `codes_0`, `codes_1`, ... of each
level, the top one first, as rows of a grid; and the attributes or the embedding where the model is conditioned on them.
The schema's metadata say under the key vae_pipeline, as JSON, which model wrote it and how the codes lie. Where the
likelihood is Bernoulli the model sees a binary draw of each image, every time the same."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(
        parser,
        "--family vae",
        "--family vae --log-var --split all --out everything.parquet",
        "--family vqvae --split train",
        note=NOTE,
    )
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test", help="which images [test]")
    parser.add_argument("--log-var", action="store_true", help="also the log-variances of a Gaussian posterior")
    parser.add_argument("--out", metavar="FILE", help="where the table goes [F-SPLIT.parquet]")


def main(params: Params, args: Namespace) -> None:
    out = Path(args.out or f"{args.family}-{args.split}.parquet")
    if out.suffix.lower() != ".parquet":
        raise UserError(f"--out {out}: expected a name that ends in .parquet")
    trained = _shown.open_trained(params, args)
    rows = encode(params, trained, args.split, out, log_var=args.log_var)
    print(f"{out}: {rows:,} rows")


def encode(params: Params, trained: _shown.Trained, split: str, out: Path, *, log_var: bool = False) -> int:
    """Write the table; how many rows it has. Memory: one row group.

    Args:
        split: train, val, test or all.

    Raises:
        UserError: the data do not fit the model, `log_var` is asked of one without, or `out` cannot be written.
    """
    from vae_core.models.gaussian import GaussianModel

    if log_var and not isinstance(trained.model, GaussianModel):
        raise UserError(
            f"--log-var: {trained.family} has no Gaussian posterior (kind: {trained.model.config.kind}); leave it out"
        )
    counts = _shown.open_images(params).manifest.counts
    names = [name for name in SPLITS if name in counts] if split == "all" else [split]
    splits = [_shown.open_data(params, trained, name) for name in names]
    columns = _schema(params, trained, splits, log_var)
    _write(out, columns, (table for each in splits for table in _tables(params, trained, each, columns)))
    return sum(map(len, splits))


def code_columns(trained: _shown.Trained, log_var: bool = False) -> dict[str, tuple["pa.DataType", int]]:
    """Type and length of what `parts` gives, by column."""
    import math

    import pyarrow as pa

    from vae_core.models import CodeModel, ContinuousModel

    model = trained.model
    if isinstance(model, CodeModel):
        return {f"codes_{i}": (pa.int32(), math.prod(grid)) for i, grid in enumerate(model.grids)}
    assert isinstance(model, ContinuousModel)
    names = ("latent", "log_var") if log_var else ("latent",)
    return {name: (pa.float32(), model.latent_dim) for name in names}


def condition_columns(trained: _shown.Trained) -> dict[str, int]:
    """Length, by column, of the vector that the model is conditioned on; a label is not one."""
    condition, data = trained.model.config.condition, trained.model.data
    lengths = {"attributes": data.attributes, "embedding": data.embedding}
    return {condition: lengths[condition]} if condition in lengths else {}


def _schema(params: Params, trained: _shown.Trained, splits: list["Split"], log_var: bool) -> "pa.Schema":
    import pyarrow as pa

    fields: dict[str, Any] = {"id": pa.string(), "split": pa.string()}
    if splits[0].manifest.classes:
        fields["label"] = pa.int64()
    fields |= {name: pa.list_(kind, length) for name, (kind, length) in code_columns(trained, log_var).items()}
    fields |= {name: pa.list_(pa.float32(), length) for name, length in condition_columns(trained).items()}
    text = json.dumps(_metadata(params, trained, splits), ensure_ascii=False)
    return pa.schema(fields, metadata={METADATA: text.encode()})


def _metadata(params: Params, trained: _shown.Trained, splits: list["Split"]) -> dict[str, Any]:
    from vae_core.models import CodeModel
    from vae_core.models.hierarchical import Hierarchical

    model: Any = trained.model
    grids = [list(grid) for grid in model.grids] if isinstance(model, CodeModel | Hierarchical) else None
    sizes = {"num_codes": model.num_codes} if isinstance(model, CodeModel) else {"latent_dim": model.latent_dim}
    return {
        "version": VERSION,
        "family": trained.family,
        "digest": trained.digest,
        "lineage": trained.written.get("lineage"),
        "model": trained.written["model"],
        "data": asdict(model.data),
        "shards": splits[0].digest,
        "rows": {split.name: len(split) for split in splits},
        "seed": params.evaluate.seed,
        "batch_size": params.evaluate.batch_size,
        "classes": list(splits[0].manifest.classes),
        "sample_rate": _shown.sample_rate(params),
        "grids": grids,
        **sizes,
    }


def _tables(params: Params, trained: _shown.Trained, split: "Split", columns: "pa.Schema") -> Iterator["pa.Table"]:
    """A table for each batch of a split."""
    import pyarrow as pa
    import torch

    ids, start = _shown.open_images(params).index(["id"], split.name)["id"], 0
    for batch, x, c in _shown.seen(trained, split, params.evaluate, f"encode {trained.family} {split.name}"):
        with torch.no_grad():
            found = parts(trained, x, c, log_var="log_var" in columns.names)
        arrays = {
            "id": ids.slice(start, len(x)),
            "split": pa.repeat(split.name, len(x)),
            **_known(batch),
            **{name: _lists(columns.field(name).type, values) for name, values in found.items()},
        }
        yield pa.table({name: arrays[name] for name in columns.names}, schema=columns)
        start += len(x)


def parts(trained: _shown.Trained, x: "Tensor", c: "Tensor | None", *, log_var: bool = False) -> dict[str, "Tensor"]:
    """What the model makes of observed pixels, [B, length] on the CPU, by column."""
    import torch

    from vae_core.models.gaussian import GaussianModel

    if log_var and isinstance(trained.model, GaussianModel):
        q = trained.model.encode(x, c)
        return {"latent": q.mean.cpu(), "log_var": q.log_var.cpu()}
    latent = trained.model.represent(x, c)
    if isinstance(latent, torch.Tensor):
        return {"latent": latent.float().cpu()}
    return {f"codes_{i}": level.flatten(1).to(torch.int32).cpu() for i, level in enumerate(latent)}


def _known(batch: "Batch") -> dict[str, "pa.Array"]:
    """Columns of the data, as far as there are any."""
    import pyarrow as pa

    known = {} if batch.labels is None else {"label": pa.array(batch.labels.numpy())}
    for name, values in (("attributes", batch.attributes), ("embedding", batch.embedding)):
        if values is not None:
            known[name] = _lists(pa.list_(pa.float32(), values.shape[1]), values)
    return known


def _lists(kind: Any, values: "Tensor") -> "pa.Array":
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.contiguous().flatten().numpy()), type=kind)


def _write(out: Path, columns: "pa.Schema", tables: Iterator["pa.Table"]) -> None:
    import pyarrow.parquet as pq

    with _saved.written(out), _saved.new_file(out) as temporary:
        with pq.ParquetWriter(
            temporary,
            columns,
            compression="zstd",
            use_dictionary=["split"],
            write_statistics=["id", "label", "split"],
            write_page_checksum=True,
        ) as file:
            for group in _groups(tables):
                file.write_table(group, row_group_size=group.num_rows)


def _groups(tables: Iterator["pa.Table"]) -> Iterator["pa.Table"]:
    import pyarrow as pa

    kept: list[pa.Table] = []
    for table in tables:
        kept.append(table)
        if sum(each.nbytes for each in kept) >= GROUP_BYTES or sum(each.num_rows for each in kept) >= GROUP_ROWS:
            yield pa.concat_tables(kept)
            kept = []
    if kept:
        yield pa.concat_tables(kept)
