"""The report: everything the stages left, on one page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.config import ReportConfig
from pipeline.report import sections, vocabulary
from pipeline.report.examples import SHOWN_CLASSES, Examples, read_examples
from pipeline.report.figures import data_uri, image_grid
from pipeline.report.inputs import Dataset, read_dataset, read_family


def render_report(families: Sequence[str], config: ReportConfig, root: Path) -> str:
    """The page as HTML. The same files below `root` give the same text: it holds no date, no host and no commit.

    Raises:
        UserError: a file that the page shows is missing or damaged; the message names it and the remedy.
    """
    dataset = read_dataset(root)
    shown = [sections.family_section(read_family(name, root)) for name in families]
    examples = read_examples(root, dataset.classes, config.data_images)
    return (
        _environment()
        .get_template("template.html")
        .render(title=config.title, dataset=dataset, data=_data_section(dataset, examples), families=shown)
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"uri": data_uri, "figure": vocabulary.figure, "size": vocabulary.size}
    return environment


def _data_section(dataset: Dataset, examples: Examples) -> Mapping[str, Any]:
    total = max(1, sum(dataset.counts.values()))
    return {
        "splits": [(split, rows, 100 * rows / total) for split, rows in dataset.counts.items()],
        "gallery": image_grid(examples.images),
        "columns": max(map(len, examples.images)),
        "classes": list(zip(examples.names, examples.rows, strict=True)),
        "hidden_classes": max(0, len(dataset.classes) - SHOWN_CLASSES),
    }
