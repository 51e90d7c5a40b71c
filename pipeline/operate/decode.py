"""bring latents or codes that `encode` wrote back to images or sound -> .npy, PNG, WAV"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.operate import _saved, _shown
from pipeline.operate.encode import METADATA, code_columns, condition_columns

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torch import Tensor

SHEET = 100  # images on a contact sheet
MOST_HZ = 2**20
NOTE = """\
A name that ends in .npy becomes uint8 [N, H, W, C]; one that ends in .png a contact sheet of the first rows; any other
name a new folder with images.npy, a contact sheet and, for sound, a WAV file a row. They are the decoder's means."""


def arguments(parser: ArgumentParser) -> None:
    _shown.model_arguments(
        parser,
        "vae-test.parquet --family vae",
        "vae-test.parquet --family vae --rows 100 --out decoded.png",
        "vqvae-train.parquet --family vqvae --out decoded",
        note=NOTE,
    )
    parser.add_argument("file", metavar="FILE", help="a table that `python -m pipeline encode` wrote")
    parser.add_argument("--rows", metavar="N", type=_shown.integer(1), help="only the first N rows [all]")
    parser.add_argument("--force", action="store_true", help="even if the table was written by another model")
    parser.add_argument("--out", metavar="PATH", help="where the images go [FILE with .npy instead of .parquet]")


def main(params: Params, args: Namespace) -> None:
    path = Path(args.file)
    out = Path(args.out) if args.out else path.with_suffix(".npy")
    if out.suffix.lower() not in (".npy", ".png") and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already; name a new folder, or a file that ends in .npy or .png")
    trained = _shown.open_trained(params, args)
    with _opened(path) as file:
        written = _metadata(file, path)
        _check(written, trained, path, args.force)
        most = SHEET if out.suffix.lower() == ".png" else file.metadata.num_rows
        rows = min(file.metadata.num_rows, args.rows or most, most)
        if rows == 0:
            raise UserError(f"{path}: holds no rows; write it anew with `python -m pipeline encode`")
        means = decoded(file, path, trained, params.evaluate.batch_size, rows)
        with _saved.written(out):
            _save(means, trained, rows, written.get("sample_rate"), out)
    print(f"{out}: {rows:,} rows")


def decoded(
    file: "pq.ParquetFile", path: Path, trained: _shown.Trained, batch_size: int, rows: int
) -> Iterator["Tensor"]:
    """The means [B, C, H, W] of p(x | latent) of the first `rows`, a batch at a time.

    Raises:
        UserError: a column is missing, or holds what the model cannot decode.
    """
    import torch

    from pipeline.progress import track

    wanted = [*code_columns(trained), *condition_columns(trained)]
    wanted += ["label"] if trained.model.config.condition == "label" else []
    for name in wanted:
        if name not in file.schema_arrow.names:
            raise UserError(
                f"{path}: no column {name!r}, which {trained.family} needs; write it anew with "
                f"`python -m pipeline encode --family {trained.family}`"
            )
    batches = file.iter_batches(batch_size=batch_size, columns=wanted, use_threads=False)
    total, left = -(-rows // batch_size), rows
    for batch in track(batches, total=total, what=f"decode {trained.family}", unit="batches"):
        part = batch.slice(0, left)
        left -= part.num_rows
        with torch.no_grad():
            latent, c = _latent(part, path, trained), _condition(part, path, trained)
            yield trained.model.decode(latent, c).mean.float()
        if left == 0:
            return
    raise UserError(f"{path}: expected {rows:,} rows, found {rows - left:,}; restore the file")


def _latent(batch: "pa.RecordBatch", path: Path, trained: _shown.Trained) -> Any:
    """What the model's `decode` takes."""
    import torch

    from vae_core.models import CodeModel

    model, columns = trained.model, code_columns(trained)
    if not isinstance(model, CodeModel):
        return _numbers(batch, path, "latent", columns["latent"][1]).float().to(trained.device)
    levels = []
    for (name, (_, length)), grid in zip(columns.items(), model.grids, strict=True):
        codes = _numbers(batch, path, name, length)
        if torch.is_floating_point(codes) or codes.min() < 0 or codes.max() >= model.num_codes:
            raise UserError(
                f"{path}: column {name!r}: expected whole numbers from 0 to {model.num_codes - 1}; restore the file"
            )
        levels.append(codes.long().unflatten(1, grid).to(trained.device))
    return tuple(levels)


def _condition(batch: "pa.RecordBatch", path: Path, trained: _shown.Trained) -> "Tensor | None":
    import numpy as np
    import torch

    from vae_core.conditioning import Known

    model = trained.model
    if model.config.condition == "label":
        classes, column = model.data.num_classes, batch["label"]
        labels = column.to_numpy(zero_copy_only=False)
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{path}: column 'label': expected whole numbers from 0 to {classes - 1}; restore the file")
        return model.condition(Known(labels=torch.from_numpy(labels.astype(np.int64)).to(trained.device)))
    known = {
        name: _numbers(batch, path, name, length).float().to(trained.device)
        for name, length in condition_columns(trained).items()
    }
    return model.condition(Known(**known))


def _numbers(batch: "pa.RecordBatch", path: Path, name: str, length: int) -> "Tensor":
    """A column of lists as [B, length]; also as other programs write them, with a length in each row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch

    column = batch[name]
    lists = pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)
    if not lists or column.null_count or pc.any(pc.not_equal(pc.list_value_length(column), length)).as_py():
        raise UserError(f"{path}: column {name!r}: expected {length} numbers in each row; restore the file")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "iuf" or not np.isfinite(flat).all():
        raise UserError(f"{path}: column {name!r}: expected finite numbers, found {column.type}; restore the file")
    if flat.dtype.kind == "u" and flat.max(initial=0) >= 2**63:
        raise UserError(f"{path}: column {name!r}: expected smaller numbers, found {flat.max()}; restore the file")
    kind = np.float32 if flat.dtype.kind == "f" else np.int64
    return torch.from_numpy(flat.reshape(len(column), length).astype(kind))


def _save(means: Iterator["Tensor"], trained: _shown.Trained, rows: int, sample_rate: int | None, out: Path) -> None:
    from pipeline import files

    data = trained.model.data
    shape = (rows, data.height, data.width, data.channels)
    sheet: list[Tensor] = []
    match out.suffix.lower():
        case ".npy":
            _saved.save_array(means, shape, out)
        case ".png":
            _save_sheet([mean.cpu() for mean in means], trained, out)
        case _:
            with files.new_directory(out) as folder:
                each = _sounding(_kept(means, sheet), sample_rate, folder)
                _saved.save_array(each, shape, folder / "images.npy")
                _save_sheet(sheet, trained, folder / "images.png")


def _kept(means: Iterator["Tensor"], sheet: list["Tensor"]) -> Iterator["Tensor"]:
    """Pass `means` on; the first ones stay in `sheet`."""
    for mean in means:
        if (room := SHEET - sum(map(len, sheet))) > 0:
            sheet.append(mean[:room].cpu())
        yield mean


def _sounding(means: Iterator["Tensor"], sample_rate: int | None, folder: Path) -> Iterator["Tensor"]:
    """Pass `means` on; where they are sound, each also becomes a WAV file, named by its row."""
    row = 0
    for mean in means:
        for signal in mean if sample_rate else ():
            _saved.save_sound(signal, sample_rate or 0, folder / f"{row:08d}.wav")
            row += 1
        yield mean


def _save_sheet(sheet: list["Tensor"], trained: _shown.Trained, out: Path) -> None:
    import torch

    rows = _saved.in_rows(torch.cat(sheet), _saved.columns(trained.model.data))
    names = [str(i * len(rows[0])) for i in range(len(rows))]
    _saved.save_picture(rows, names, f"Decoded by {trained.family}", out)


def _check(written: dict[str, Any], trained: _shown.Trained, path: Path, force: bool) -> None:
    """Refuse what another model wrote: its numbers would mean something else, or nothing."""
    found = written.get("digest")
    if found == trained.digest or force:
        return
    if found is None:
        what = "does not say which model wrote it"
    else:
        what = f"was written by {written.get('family')} {found} (lineage {_lineage(written.get('lineage'))})"
    raise UserError(
        f"{path}: {what}, and models/{trained.family}/{trained.which} is {trained.digest} (lineage "
        f"{_lineage(trained.written.get('lineage'))}); name the model that wrote it, encode anew with this one, or add "
        "--force"
    )


def _lineage(values: Any) -> str:
    known = values if isinstance(values, dict) else {}
    return ", ".join(f"{name} {str(value)[:12]}" for name, value in known.items()) or "unknown"


def _metadata(file: "pq.ParquetFile", path: Path) -> dict[str, Any]:
    """What `encode` wrote about the table; empty where another program wrote it."""
    text = (file.schema_arrow.metadata or {}).get(METADATA)
    try:
        found = {} if text is None else files.parse_json(text)
        rate = found.get("sample_rate") if isinstance(found, dict) else None
    except ValueError:
        found = rate = None
    if not isinstance(found, dict) or not (rate is None or (type(rate) is int and 0 < rate <= MOST_HZ)):
        raise UserError(f"{path}: damaged metadata; write it anew with `python -m pipeline encode`")
    return found


@contextmanager
def _opened(path: Path) -> Iterator["pq.ParquetFile"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such file; write it with `python -m pipeline encode`")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except pa.ArrowException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: damaged ({reason}); write it anew with `python -m pipeline encode`") from None
