"""print what a data folder or shards hold and what looks wrong with them, draw images -> contact-sheet.png"""

import sys
import unicodedata
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Params
from pipeline.data.shape import described, things
from pipeline.errors import UserError
from pipeline.report.vocabulary import channel_names, size

if TYPE_CHECKING:
    from pipeline.data.inspection import Inspection
    from pipeline.data.ledger import Reason

FACTS, LEDGER = "dataset.json", "quarantine.parquet"

LISTED_CLASSES = 30
BAR = 24  # characters, of the largest class
NAME, DETAIL = 40, 100  # characters shown of a name, of an explanation
MOST_IMAGES = 50


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", nargs="?", default="data", help="data folder, or folder or address of shards [data]"
    )
    parser.add_argument(
        "--out", metavar="FILE", default="contact-sheet.png", help="where the contact sheet goes [contact-sheet.png]"
    )
    parser.add_argument(
        "--images", metavar="N", type=_number, default=10, help="images in a row of the contact sheet [10]"
    )


def main(params: Params, args: Namespace) -> None:
    from pipeline.data.contact_sheet import save_contact_sheet
    from pipeline.data.inspection import inspect_path

    out = Path(args.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: expected a name that ends in .png")
    if (Path(args.path) / LEDGER).exists() and not (Path(args.path) / FACTS).exists():
        _print([*_unfinished(Path(args.path))])
        return
    found = inspect_path(args.path, args.images, params.compute.read)
    _print([*describe(found), ""])
    try:
        save_contact_sheet(found, out, args.images)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written ({error.strerror}); name another file") from None
    _print([f"contact sheet: {out}"])


def describe(found: "Inspection") -> Iterator[str]:
    """The lines of the description, paragraphs apart."""
    from pipeline.data.doubts import doubts

    yield f"{_plain(found.name)} {found.digest[:12]}"
    yield f"{sum(found.counts.values()):,} {things(found.shape)}, {described(found.shape)}"
    yield from map(_plain, found.notes)
    for part in (_splits, _classes, _numbers, _ledger, _disk):
        yield from ("", *part(found))
    if noticed := list(doubts(found)):
        yield from ("", "worth a look", *(f"  - {_plain(line)}" for line in noticed))


def _splits(found: "Inspection") -> Iterator[str]:
    total = max(1, sum(found.counts.values()))
    several = found.generations if len(found.generations) > 1 else ()
    head = ["split", "rows", "share", *("source" if n == 0 else f"append {n}" for n in range(len(several)))]
    rows = [
        [split, f"{count:,}", f"{100 * count / total:.1f} %", *(f"{rows[split]:,}" for rows in several)]
        for split, count in found.counts.items()
    ]
    yield from _aligned([head, *rows])


def _classes(found: "Inspection") -> Iterator[str]:
    if not found.classes:
        yield "no classes"
        return
    sums = found.labels.sum(0)
    rows = [
        [_short(name, NAME), *(f"{count:,}" for count in found.labels[:, label]), f"{100 * share:.1f} %", _bar(length)]
        for label, name in enumerate(found.classes[:LISTED_CLASSES])
        for share, length in [(sums[label] / max(1, sums.sum()), sums[label] / max(1, sums.max()))]
    ]
    yield from _aligned([["class", *found.counts, "share", ""], *rows], left={0, 5})
    if len(found.classes) > LISTED_CLASSES:
        yield f"and {len(found.classes) - LISTED_CLASSES:,} more classes"


def _numbers(found: "Inspection") -> Iterator[str]:
    is_image = things(found.shape) == "images"
    names = channel_names(found.shape.channels) if is_image or found.shape.channels > 1 else ("value",)
    rows = [
        [name, f"{channel.mean:.2f}", f"{channel.std:.2f}", *map(_value, (channel.low, channel.high))]
        for name, channel in zip(names, found.channels, strict=True)
    ]
    yield from _aligned([[f"{'pixels' if is_image else 'values'}, 0 to 255", "mean", "std", "min", "max"], *rows])
    if found.constant is None:
        yield "the shards are encoded or elsewhere, so only the images of the contact sheet were read"
    if found.attributes:
        numbers = [[_short(a.name, NAME), f"{a.mean:.6g}", f"{a.low:.6g}", f"{a.high:.6g}"] for a in found.attributes]
        yield from ("", *_aligned([["attribute", "mean", "min", "max"], *numbers]))
    if found.embedding:
        yield from ("", f"embedding of {found.embedding:,} numbers")


def _ledger(found: "Inspection") -> Iterator[str]:
    if found.duplicates is None or found.rows_in is None:
        yield "duplicates and rows put aside: in the data folder, not in the shards"
        return
    what = things(found.shape)
    repeated = f"{found.duplicates:,} {what} equal another one of their split" if found.duplicates else "none"
    yield f"duplicates: {repeated}"
    aside = sum(reason.rows for reason in found.reasons)
    yield f"put aside: {aside:,} of {found.rows_in:,} rows"
    yield from _reasons(found.reasons)


def _unfinished(folder: Path) -> Iterator[str]:
    """What an ingest that stopped has put aside."""
    from pipeline.data.ledger import read_ledger

    yield f"{folder}: no {FACTS}, because the last ingest stopped; it had put aside"
    yield from _reasons(read_ledger(folder / LEDGER))


def _reasons(reasons: Sequence["Reason"]) -> Iterator[str]:
    for reason in reasons:
        yield f"  {_plain(reason.error)} {reason.rows:,}"
        entries = [
            [_short(e.source or "-", NAME), _short(e.id or "-", NAME), _short(e.detail, DETAIL)]
            for e in reason.examples
        ]
        yield from (f"    {line}" for line in _aligned(entries, left={0, 1, 2}))


def _disk(found: "Inspection") -> Iterator[str]:
    yield from _aligned([["on disk", "size"], *([name, size(count)] for name, count in found.bytes.items())])
    if found.tars:
        head = [f"shards, {found.encoding}", "number", "rows", "smallest", "largest"]
        rows = [[t.split, f"{t.number:,}", f"{t.rows:,}", size(t.smallest), size(t.largest)] for t in found.tars]
        yield from ("", *_aligned([head, *rows]))


def _aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> Iterator[str]:
    """Columns two spaces apart: those of `left`, or the first one, start at a line, the others end at one."""
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for place, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _columns(text))
            cells.append(text + space if place in left else space + text)
        yield "  ".join(cells).rstrip()


def _columns(text: str) -> int:
    """Columns of a terminal that the text takes: wide letters two, marks above a letter none."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _plain(text: str) -> str:
    """One line, with nothing in it that a terminal would take for a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(text: str, most: int) -> str:
    plain = _plain(text)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def _bar(length: float) -> str:
    """Blocks for a length from 0 to 1, in steps of half a block; something for all but 0."""
    halves = round(2 * BAR * length) or int(length > 0)
    return "█" * (halves // 2) + "▌" * (halves % 2)


def _value(value: int | None) -> str:
    return "-" if value is None else str(value)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_IMAGES:
        raise ArgumentTypeError(f"expected an integer from 1 to {MOST_IMAGES}, found {text!r}")
    return int(text)


def _print(lines: Sequence[str]) -> None:
    """Also where the output cannot show every letter."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "\n".join(lines)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace("█", "#").replace("▌", "").replace("…", "...")
        text = plain.encode(encoding, "backslashreplace").decode(encoding)
    print(text)
