"""The report: everything the stages left, on one page that needs nothing but itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.config import ReportConfig
from pipeline.report import sections, vocabulary
from pipeline.report.examples import SHOWN_CLASSES, Examples, read_examples
from pipeline.report.figures import data_uri, image_grid
from pipeline.report.inputs import STATISTICS, Dataset, read_dataset, read_family


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
    several = dataset.generations if len(dataset.generations) > 1 else ()
    return {
        "splits": [
            (split, rows, 100 * rows / total, [generation[split] for generation in several])
            for split, rows in dataset.counts.items()
        ],
        "generations": ["Source" if number == 0 else f"Append {number}" for number in range(len(several))],
        "channels": list(_channels(dataset)),
        "duplicates": _duplicates(dataset),
        "gallery": image_grid(examples.images),
        "columns": max(map(len, examples.images)),
        "classes": list(zip(examples.names, examples.rows, strict=True)),
        "hidden_classes": max(0, len(dataset.classes) - SHOWN_CLASSES),
    }


def _channels(dataset: Dataset) -> Iterator[tuple[str, Sequence[Markup]]]:
    """Each channel's name and figures, mean and deviation with two decimals."""
    values = zip(*(dataset.statistics[name] for name in STATISTICS), strict=True)
    for name, numbers in zip(vocabulary.channel_names(dataset.image[2]), values, strict=False):
        yield name, [vocabulary.figure(n, decimals) for n, decimals in zip(numbers, (2, 2, 0, 0), strict=True)]


def _duplicates(dataset: Dataset) -> str:
    """Repeated images and leakage in words."""
    leaked = dataset.test_images_also_in_train
    repeated = _count(dataset.duplicate_images, "image repeats", "images repeat")
    copies = _count(dataset.duplicates_across_splits, "copy of an image", "copies of images")
    aside = "was" if dataset.duplicates_across_splits == 1 else "were"
    across = f"{_count(leaked, 'test image is', 'test images are')} in the training split too, which flatters the tests"
    text = (
        f"{repeated} another one of the same split exactly; {copies} in another split {aside} put aside; "
        f"{across if leaked else 'none is in two splits'}."
    )
    return text[0].upper() + text[1:]


def _count(number: int, one: str, many: str) -> str:
    return f"{vocabulary.written(number, -1) if number else 'no'} {one if number == 1 else many}"
