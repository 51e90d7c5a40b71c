import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from report_project import CONFIG, FAMILIES, FINDINGS, Digits, dataset, metrics, write, write_json

from pipeline.config import ReportConfig, load_params
from pipeline.data.quarantine import Entry, write_ledger
from pipeline.errors import UserError
from pipeline.report.page import render_report
from pipeline.report.vocabulary import METRICS
from pipeline.stages import report as stage

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Every element with its attributes, in order; unbalanced tags and repeated ids are an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "source"}
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            value = attributes.get(name, "data:")
            assert value.startswith("data:") or value[1:] in ids, (tag, value)
    assert re.findall(r"url\((?!#)|@import", html) == []
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_content_policy_forbids_requests(html: str) -> None:
    policies = [meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_figure_is_inlined_and_described(html: str, root: Path) -> None:
    page = Page(html)
    pictures = page.all("img")
    files = [*root.glob("results/evaluate/*/*.png"), *root.glob("results/tune/*/*.png")]
    unexplained = len(FAMILIES) - 1  # sweeps with too few trials to say how much each key mattered
    assert len(pictures) == len(files) - unexplained + 1  # and the gallery of the data
    assert all(len(picture["alt"]) > 20 for picture in pictures)
    charts = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    without_rate = 1  # the autoencoder, which has a distortion alone
    assert len(charts) == len(page.all("svg")) == 3 * len(FAMILIES) - 2 * without_rate
    assert all("training from" in chart["aria-label"] for chart in charts)


def test_bytes_are_stable_and_free_of_the_machine(html: str, root: Path) -> None:
    assert render_report(FAMILIES, CONFIG, root) == html
    assert str(root) not in html
    assert "matplotlib" not in html
    assert re.findall(r"20\d\d-\d\d-\d\d", html) == []


def test_chart_ignores_the_users_matplotlib_settings(html: str, root: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}):
        assert render_report(FAMILIES, CONFIG, root) == html


def test_headings_descend_one_level_at_a_time(html: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(html).elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_table_header_has_a_scope(html: str) -> None:
    headers = Page(html).all("th")
    assert headers
    assert {header.get("scope") for header in headers} == {"col", "row", "colgroup"}


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_every_test_metric_appears_exactly(html: str, number: int) -> None:
    for model in metrics(FAMILIES[number], number).values():
        for value in model["test"].values():
            assert f'<data value="{value}">' in html


def test_numbers_are_rounded_with_a_true_minus_sign(html: str) -> None:
    assert '<data value="101.26418">101.26</data>' in html
    assert ">−412.74</data>" in html
    assert re.search(r">−2\.62</data> <small class=\"better\">better</small>", html)
    assert ">1,297</data>" in html


def test_unknown_metrics_come_after_the_known_ones(html: str) -> None:
    table = html[html.index("Test metrics of vae") :]
    rows = re.findall(r'<th scope="row">([^<]+?) <span', table[: table.index("</table>")])
    assert rows[0] == "Negative ELBO, β = 1"
    assert rows[-1] == "Bits back overhead"


def test_best_trial_is_marked_and_first(html: str) -> None:
    for table in re.findall(r"Trials of \w+; the best is marked.*?</table>", html, flags=re.DOTALL):
        names = re.findall(r'<th scope="row"><span class="name">([^<]+)', table)
        assert names == ["trial-3", "trial-2", "trial-1", "baseline", "trial-4", "trial-5", "trial-6"]
        assert re.findall(r'<tr class="best">\s*<th scope="row"><span class="name">([^<]+)', table) == ["trial-3"]


def test_each_family_says_what_its_nats_are_of(html: str) -> None:
    sections = dict(zip(FAMILIES, re.split(r'<section id="family-', html)[1:], strict=True))
    assert [name for name in FAMILIES if "Nats of a density" in sections[name]] == ["vqvae"]
    assert [name for name in FAMILIES if "Nats of binary pixels" in sections[name]] == ["vae", "cvae", "autoencoder"]
    assert [name for name in FAMILIES if "Nats of grey values" in sections[name]] == ["hierarchical"]
    assert [name for name in FAMILIES if "Conditional." in sections[name]] == ["cvae"]


def sections_of(html: str) -> dict[str, str]:
    """The text of each family's section, each run of spaces one space."""
    parts = re.split(r'(?=<section id="family-)', html)[1:]
    ended = [part[: part.index("</section>") + len("</section>")] for part in parts]
    return dict(zip(FAMILIES, (" ".join(Page(part).text.split()) for part in ended), strict=True))


def test_the_diagnosis_says_what_is_wrong_and_what_to_change(html: str) -> None:
    for family, text in sections_of(html).items():
        for finding in FINDINGS.get(family, []):
            assert f"{finding['evidence']} {finding['remedy']}" in text
        assert ("Nothing stands out" in text) is (family not in FINDINGS)


def test_every_metric_of_the_evaluation_has_a_name_and_a_meaning(html: str) -> None:
    """Each that the families of the test have but the one that nobody knows."""
    names = {name for number, family in enumerate(FAMILIES) for name in metrics(family, number)["best"]["test"]}
    assert names - set(METRICS) == {"bits_back_overhead"}
    text = sections_of(html)
    assert "Mutual information I(x; z)" in text["vae"]
    for label in ("Fréchet distance of samples", "Linear probe", "Coded size", "Negative ELBO, learned prior", "PSNR"):
        assert (label in text["vqvae"]) is True
        assert (label in text["vae"]) is False
    assert "MIG" in text["autoencoder"]


def test_a_family_without_a_prior_is_shown_by_its_distortion(html: str) -> None:
    text = sections_of(html)["autoencoder"]
    assert text.startswith("autoencoder Autoencoder, 12 latent dimensions, mlp network, bernoulli likelihood.")
    assert "There are no samples: the family has no prior to draw from." in text
    assert "Negative ELBO, β = 1" not in text
    assert "judged by validation distortion." in text
    assert "Distortion Validation split, lower is better." in text
    assert "Rate against distortion" not in text
    section = re.split(r'<section id="family-', html)[1 + FAMILIES.index("autoencoder")]
    assert section.count("<svg") == 1
    assert "training from 134.00 to 80.00" in section
    overview = html[: html.index('<section id="family-')]
    assert ">70.12</data>" in overview or ">70.13</data>" in overview


def test_why_there_are_no_samples_is_said(html: str) -> None:
    text = sections_of(html)
    assert "takes a learned prior over its codes" in text["vqvae"]
    assert [name for name in FAMILIES if "There are no samples" in text[name]] == ["vqvae", "autoencoder"]


def test_a_schedule_is_shown_key_by_key(html: str) -> None:
    text = sections_of(html)["hierarchical"]
    for line in ("beta.kind linear", "beta.start 0", "beta.end 1", "beta.until 0.3", "network.downsamples none"):
        assert line in text
    assert text.startswith("hierarchical Deep hierarchical variational autoencoder, residual network, ")


def test_lineage_and_artifact_sizes_are_shown(html: str) -> None:
    assert dataset()["digest"] in html
    assert "2f0e1d2c3b4a5968" in html
    assert "2.3 kB" in html
    assert "7.15e−06" in html


def test_gallery_counts_the_rows_of_each_class(html: str) -> None:
    counts = np.bincount(Digits().labels(np.arange(len(Digits()))))
    for name, count in enumerate(counts):
        assert f'<li><span>{name}</span><small><data value="{count}">{count}</data></small></li>' in html


def test_titles_and_names_from_files_are_escaped(root: Path) -> None:
    hostile = "<script>alert('x')</script>"
    facts = {**dataset(), "name": hostile, "quarantined": {hostile: 1}, "attributes": [hostile]}
    write_json(root / "data/dataset.json", facts)
    write_ledger(root / "data/quarantine.parquet", [Entry(hostile, hostile, hostile, hostile)])
    page = Page(render_report(FAMILIES, ReportConfig(title=hostile, data_images=2), root))
    assert page.all("script") == []
    assert page.text.count(hostile) == 8  # title, h1, eyebrow, attribute, reason with id and detail, lineage


def data_section(html: str) -> str:
    """Its text, the cells of a table apart, each run of spaces one space."""
    section = html[html.index('<section id="data"') : html.index('<section id="family-')]
    return " ".join(Page(re.sub("(?=</t[dh]>)", " ", section)).text.split())


def test_pixel_statistics_are_shown_for_each_channel(root: Path, html: str) -> None:
    assert "gray 77.81 95.60 0 255" in data_section(html)
    colours = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "min": [0, 0, 7], "max": [250, 251, 252]}
    image = {"height": 8, "width": 8, "channels": 3}
    write_json(root / "data/dataset.json", {**dataset(), "statistics": colours, "image": image})
    assert "red 1.00 4.00 0 250 green 2.00 5.00 0 251 blue 3.00 6.00 7 252" in data_section(
        render_report(FAMILIES, CONFIG, root)
    )


def test_each_reason_to_put_rows_aside_has_an_example(html: str) -> None:
    text = data_section(html)
    assert "1,640 rows in = 1,637 prepared + 3 put aside." in text
    assert "copy_in_other_split 2 row-17 the same image is in a split that goes before" in text
    assert "unreadable 1 row-3 expected 64 numbers, found 63" in text
    assert text.index("copy_in_other_split") < text.index("unreadable")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ((0, 0, 0), "No images repeat another one"),
        ((0, 0, 0), "no copies of images in another split were put aside; none is in two splits."),
        ((1, 1, 0), "1 image repeats another one of the same split exactly; 1 copy of an image in another split was"),
        ((1200, 2, 0), "1,200 images repeat another one of the same split exactly; 2 copies of images in another"),
        ((0, 0, 1), "1 test image is in the training split too, which flatters the tests."),
    ],
)
def test_duplicates_and_leakage_are_said_in_words(root: Path, facts: tuple[int, ...], sentence: str) -> None:
    names = ("duplicate_images", "duplicates_across_splits", "test_images_also_in_train")
    write_json(root / "data/dataset.json", {**dataset(), **dict(zip(names, facts, strict=True))})
    assert sentence in data_section(render_report(["vae"], CONFIG, root))


def test_rows_of_each_generation_are_shown_where_there_are_several(root: Path, html: str) -> None:
    assert "Append" not in data_section(html)
    generations = [{"train": 1200, "val": 150, "test": 170}, {"train": 97, "val": 10, "test": 10}]
    write_json(root / "data/dataset.json", {**dataset(), "generations": generations})
    text = data_section(render_report(["vae"], CONFIG, root))
    assert "Source Append 1 train 1,297 79.2 1,200 97 val 160 9.8 150 10" in text


def test_attributes_and_embedding_are_named(root: Path, html: str) -> None:
    assert "Each image comes with" not in data_section(html)
    for attributes, embedding, sentence in (
        (["size"], 0, "Each image comes with the attribute size."),
        (["size", "hue"], 512, "Each image comes with the attributes size, hue and an embedding of 512 numbers."),
        ([], 512, "Each image comes with an embedding of 512 numbers."),
    ):
        write_json(root / "data/dataset.json", {**dataset(), "attributes": attributes, "embedding": embedding})
        assert sentence in data_section(render_report(["vae"], CONFIG, root))


def test_a_ledger_that_does_not_fit_is_reported(root: Path) -> None:
    write_ledger(root / "data/quarantine.parquet", [])
    with pytest.raises(UserError, match=r"^data/quarantine.parquet: its rows are not those.*dvc repro"):
        render_report(FAMILIES, CONFIG, root)


INPUTS = (
    "data/dataset.json",
    "data/quarantine.parquet",
    "results/train/vae/curves.tsv",
    "results/tune/vae/trials.csv",
    "results/tune/vae/best.json",
    "results/tune/vae/importance.json",
    "results/tune/vae/rate_distortion.png",
    "results/tune/vae/parallel_coordinates.png",
    "results/tune/vae/importance.png",
    "results/evaluate/vae.json",
    "results/diagnosis/vae.json",
    "artifacts/vae/config.json",
    "artifacts/vae/metrics.json",
)


@pytest.mark.parametrize("name", INPUTS)
def test_a_missing_input_is_named_with_the_remedy(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(UserError, match=rf"^{re.escape(name)}: no such file.*dvc repro"):
        render_report(FAMILIES, CONFIG, root)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("data/dataset.json", "{", "not valid JSON"),
        ("data/dataset.json", json.dumps({"name": "x"}), "no key 'image'"),
        ("data/quarantine.parquet", "PAR0", "not a ledger"),
        ("results/evaluate/vae.json", json.dumps({"baseline": {"test": {}}}), "no key 'best'"),
        ("results/diagnosis/vae.json", "[", "not valid JSON"),
        ("results/train/vae/curves.tsv", "epoch\tstep\n", "it holds no rows"),
        ("results/train/vae/curves.tsv", "epoch\tstep\n1\t2\n", "no column 'train_neg_elbo_nats'"),
        ("results/tune/vae/rate_distortion.png", "GIF89a", "not a PNG image"),
    ],
)
def test_a_damaged_input_is_named_with_the_reason(root: Path, name: str, content: str, why: str) -> None:
    write(root / name, content)
    with pytest.raises(UserError, match=rf"^{re.escape(name)}: {re.escape(why)}.*dvc repro"):
        render_report(FAMILIES, CONFIG, root)


def test_figures_that_a_family_does_not_have_are_left_out(root: Path, html: str) -> None:
    (root / "results/evaluate/vae/samples.png").unlink()
    without = Page(render_report(FAMILIES, CONFIG, root))
    assert len(without.all("img")) == len(Page(html).all("img")) - 1


def test_a_family_without_a_sweep_says_that_the_baseline_is_best(root: Path) -> None:
    header = "trial,status,epochs,val_neg_elbo_nats,val_distortion_nats,val_rate_nats,metric,best,pareto"
    write(root / "results/tune/vae/trials.csv", f"{header}\nbaseline,baseline,10,101.5,76.0,25.5,101.5,true,true\n")
    text = " ".join(Page(render_report(["vae"], CONFIG, root)).text.split())
    assert "1 candidate, the baseline" in text
    assert "the baseline is also the best" in text
    assert "swept" not in text
    assert "Parallel coordinates" not in text


def test_a_sweep_for_another_figure_shows_it_and_puts_the_highest_first(root: Path) -> None:
    header = "trial,status,epochs,beta,val_neg_elbo_nats,val_distortion_nats,val_rate_nats,val_disentanglement_mig"
    rows = ["baseline,baseline,10,1,101.5,76.0,25.5,0.11,0.11,false,false",
            "trial-000,completed,10,4,105.5,90.0,15.5,0.31,0.31,true,true"]  # fmt: skip
    write(root / "results/tune/vae/trials.csv", "\n".join([f"{header},metric,best,pareto", *rows, ""]))
    write(root / "results/tune/vae/best.json", json.dumps({"disentanglement_mig": {"trial": "trial-000"}}))
    html = render_report(["vae"], CONFIG, root)
    table = re.search(r"Trials of vae; the best is marked.*?</table>", html, flags=re.DOTALL)
    assert table
    text = " ".join(Page(html).text.split())
    assert "judged by validation MIG." in text
    assert "completed, unbeaten" in text
    assert re.findall(r'<th scope="row"><span class="name">([^<]+)', table[0]) == ["trial-000", "baseline"]
    assert "0.31" in table[0]


def test_stage_writes_the_page(root: Path, html: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(Path(__file__).parents[3] / "params.yaml")
    monkeypatch.chdir(root)
    stage.main(replace(params, report=CONFIG, families=FAMILIES), None)
    assert Path("report/index.html").read_text(encoding="utf-8") == html
