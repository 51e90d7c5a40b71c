"""What a source gives, read as the stages read it: each partition as another process has it."""

import pickle
from typing import Any

import pyarrow as pa

from pipeline.data.sources.base import ROWS, Source


def table_of(source: Source) -> pa.Table:
    """All rows; each partition gives as many as it announced, each time it is read, with the columns of `ROWS`."""
    parts = [pickle.loads(pickle.dumps(part)) for part in source.partitions]
    batches = [list(part.batches()) for part in parts]
    announced = [part.rows for part in parts]
    assert announced == [sum(batch.num_rows for batch in given) for given in batches]
    assert announced == [sum(batch.num_rows for batch in part.batches()) for part in parts]
    assert all(batch.schema == ROWS for given in batches for batch in given)
    table = pa.Table.from_batches([batch for given in batches for batch in given], ROWS)
    table.validate(full=True)
    assert table.num_rows == source.rows
    return table


def rows_of(source: Source) -> list[dict[str, Any]]:
    return table_of(source).to_pylist()


def column_of(source: Source, name: str) -> list[Any]:
    return table_of(source)[name].to_pylist()
