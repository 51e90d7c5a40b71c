"""read the source, decode and check its images, divide them into splits -> data/prepared"""

from pathlib import Path

from pipeline import progress
from pipeline.config import Params
from pipeline.data.ingest import ingest


def main(params: Params, family: str | None) -> None:
    facts = ingest(params.data, params.compute, Path("data"))
    counts = ", ".join(f"{split} {count:,}" for split, count in facts["counts"].items())
    columns = f"{len(facts['classes'])} classes, {len(facts['attributes'])} attributes, embedding {facts['embedding']}"
    progress.say(f"{facts['name']}: {counts}; {columns}")
    progress.say(f"{facts['rows_quarantined']:,} of {facts['rows_in']:,} rows quarantined")
    for error, rows in facts["quarantined"].items():
        progress.say(f"  {error}: {rows:,} (data/quarantine.parquet)")
