"""Names from data and experiments in pages and cards: shown as they are, never markup."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_project import Digits, dataset, write_json, write_project

from pipeline.config import ReportConfig
from pipeline.data.quarantine import Entry, write_ledger
from pipeline.export.artifacts import literal
from pipeline.report import examples
from pipeline.report.page import render_report

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:alert(1)",
    "<!-- --><iframe srcdoc='x'>",
    "&lt;script&gt;",
]


class Tags(HTMLParser):
    """The tags of a page, the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("href", "src")}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def root(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished project."""
    monkeypatch.setattr(examples, "open_split", lambda shards, split: Digits())
    write_project(home)
    return home


def test_no_name_becomes_markup_of_the_page(root: Path) -> None:
    text = " ".join(HOSTILE)
    plain = Tags(render_report(("vae",), ReportConfig(title="Plain", data_images=2), root))
    facts = dataset()
    classes = [f"{text}{number}" for number in range(len(facts["classes"]))]
    facts |= {"name": text, "classes": classes, "attributes": [text], "quarantined": {text: 1}, "files": {text: text}}
    write_json(root / "data/dataset.json", facts)
    write_ledger(root / "data/quarantine.parquet", [Entry(text, text, text, text)])
    finding = {"name": text, "evidence": text, "remedy": text}
    write_json(root / "results/diagnosis/vae.json", [finding])
    for path in root.glob("results/tune/vae/trials.csv"):
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(
                [lines[0], *(line.replace("baseline", f'"{text.replace(chr(34), chr(34) * 2)}"') for line in lines[1:])]
            )
        )
    page = Tags(render_report(("vae",), ReportConfig(title=text, data_images=2), root))
    assert page.tags <= plain.tags | {"code", "small", "table", "p"}
    assert not page.attributes & {"onerror", "onload", "onmouseover", "srcdoc", "onclick"}
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert page.text.count(text) >= 8


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a | b", "[x](javascript:alert(1))", "![x](http://x)", "`x`", "# x\n# y", "**x**", "\x1b[2J"]
)
def test_no_name_becomes_markup_of_the_model_card(text: str) -> None:
    shown = literal(text)
    assert shown.isprintable()
    for mark in "<>[]|`*#!":
        assert shown.count(mark) == shown.count(f"\\{mark}")
    assert literal("fashion_mnist (28 x 28)") == "fashion_mnist (28 x 28)"
