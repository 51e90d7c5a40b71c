"""The quarantine ledger, read: how many rows were put aside for which reason, and some of them."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.quarantine import LEDGER, Entry
from pipeline.errors import UserError

EXAMPLES = 3  # entries kept of each reason


class Reason(NamedTuple):
    """Rows put aside for one reason: how many, and the first of them."""

    error: str
    rows: int
    examples: tuple[Entry, ...]


def read_ledger(path: Path, name: str | None = None) -> tuple[Reason, ...]:
    """The rows of a quarantine ledger by reason, the most frequent first, with the first EXAMPLES of each.

    Args:
        name: what messages call it; None: its path.

    Raises:
        UserError: it is missing or damaged.
    """
    rows: dict[str, int] = {}
    examples: dict[str, list[Entry]] = {}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=LEDGER.names):
                for entry in (Entry(**row) for row in batch.to_pylist()):
                    rows[entry.error] = rows.get(entry.error, 0) + 1
                    if rows[entry.error] <= EXAMPLES:
                        examples.setdefault(entry.error, []).append(entry)
    except FileNotFoundError:
        raise UserError(f"{name or path}: no such file; make it with `dvc repro ingest`") from None
    except (pa.ArrowException, OSError, TypeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name or path}: not a ledger ({why}); make it again with `dvc repro -f ingest`") from None
    ordered = sorted(rows, key=lambda error: (-rows[error], error))
    return tuple(Reason(error, rows[error], tuple(examples[error])) for error in ordered)
