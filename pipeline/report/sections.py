"""What the page shows of one family: its files turned into titles, rows and charts for the template."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.kinds import KINDS
from pipeline.report.figures import curve_chart
from pipeline.report.inputs import Family, Row
from pipeline.report.sweep import CHARTS, number, sweep_section
from pipeline.report.vocabulary import ABSENT, FILES, METRICS, NATS, PARITY, figure, in_order, is_number, written
from vae_core.metrics.primary import primary

CAPTIONS = {
    "reconstructions": (
        "Reconstructions",
        "Test images and what the best model makes of them. Blur is distortion the rate did not pay for.",
    ),
    "samples": ("Samples", "Codes drawn from the prior and decoded: what the model believes the data look like."),
    "interpolation": (
        "Interpolation",
        "Straight lines between the codes of two test images. In-between images should stay plausible.",
    ),
    "traversal": (
        "Traversals",
        "The code of one test image with one dimension at a time changed. One that changes nothing is not used.",
    ),
    "style": ("Style transfer", "Each test image encoded as what it is and decoded as every class in turn."),
    "codes": ("Codes", "Test images, the codes they become, shown by number, and the images decoded from those codes."),
}


def family_section(family: Family) -> Mapping[str, Any]:
    slug = "family-" + re.sub(r"[^A-Za-z0-9_-]+", "-", family.name)
    sweep = sweep_section(family)
    return {
        "name": family.name,
        "slug": slug,
        "summary": summary(family.model),
        "likelihood": family.model.get("likelihood", ""),
        "conditional": family.model.get("condition", "none") != "none",
        "vector_quantised": family.model.get("kind") in ("vqvae", "vqvae2"),
        "findings": family.findings,
        "headline": _headline(family),
        "charts": list(_charts(family, slug)),
        "epochs": len(family.curves),
        "sampled": "samples" in family.figures,
        "figures": [(*CAPTIONS[name], picture) for name, picture in family.figures.items()],
        "sweep": sweep,
        "metrics": list(_comparison(family.metrics)),
        "config": list(_configuration(family, sweep["swept"])),
        "parity": [(metric, figure(family.parity[key], metric.decimals)) for key, metric in _numbers(family.parity)],
        "artifact": [{"name": name, "bytes": count, "what": FILES.get(name, "")} for name, count in family.artifact],
        "lineage": family.lineage,
    }


def summary(model: Mapping[str, Any]) -> str:
    """One line on the model: Variational autoencoder, 20 latent dimensions, β = 1, ..."""
    network = model.get("network", {})
    parts = [
        KINDS.get(model.get("kind", ""), str(model.get("kind", "model"))),
        "{latent_dim} latent dimensions" if "latent_dim" in model else "",
        "β = {beta:g}" if isinstance(model.get("beta"), int | float) else "",
        "{variables} variables of {categories} categories" if "categories" in model else "",
        "{samples} importance samples" if model.get("kind") == "iwae" else "",
        "{levels} levels" if "levels" in model else "",
        "estimator {estimator}" if "estimator" in model else "",
        "{num_codes} codes of {code_dim} dimensions" if {"num_codes", "code_dim"} <= set(model) else "",
        f"{network['kind']} network" if "kind" in network else "",
        "{likelihood} likelihood" if "likelihood" in model else "",
        "given the {condition}" if model.get("condition", "none") != "none" else "",
    ]
    return ", ".join(part.format(**model) for part in parts if part)


def _headline(family: Family) -> Mapping[str, str]:
    baseline, best = family.metrics["baseline"], family.metrics["best"]
    name = primary(best)
    return {
        "label": METRICS[name].label,
        "baseline": figure(baseline.get(name), 2),
        "best": figure(best.get(name), 2),
        "difference": _difference(name, baseline, best)[0],
        "nll": figure(best.get("nll_nats"), 2),
        "nll_error": figure(best.get("nll_standard_error_nats"), 2) if "nll_nats" in best else Markup(""),
        "nll_samples": figure(best.get("nll_samples"), -1),
        "mse": figure(best.get("mse"), 5),
    }


def _charts(family: Family, slug: str) -> Iterator[Mapping[str, Any]]:
    epochs = [int(row["epoch"]) for row in family.curves]
    for key, label in CHARTS.items():
        train = [number(row, f"train_{key}_nats") for row in family.curves]
        if not all(map(math.isfinite, train)):  # a family without a prior has a distortion alone
            continue
        validation = [number(row, f"val_{key}_nats") for row in family.curves]
        yield {
            "label": label,
            "svg": curve_chart(epochs, train, validation, name=f"{slug}-{key}"),
            "last": figure(validation[-1], 2),
            "alt": f"{label} of {family.name} in {NATS}, epochs {epochs[0]} to {epochs[-1]}: "
            f"training from {written(train[0], 2)} to {written(train[-1], 2)}, "
            f"validation from {written(validation[0], 2)} to {written(validation[-1], 2)}.",
        }


def _comparison(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """A row for each number that either model has."""
    baseline, best = metrics["baseline"], metrics["best"]
    for key, metric in _numbers({**baseline, **best}):
        difference, verdict = _difference(key, baseline, best) if metric.compared else (Markup(""), "")
        yield {
            "metric": metric,
            "baseline": figure(baseline.get(key), metric.decimals),
            "best": figure(best.get(key), metric.decimals),
            "difference": difference,
            "verdict": verdict,
        }


def _difference(key: str, baseline: Mapping[str, Any], best: Mapping[str, Any]) -> tuple[Markup, str]:
    """Best minus baseline, and whether that is better or worse where the metric has a direction."""
    old, new, metric = baseline.get(key), best.get(key), METRICS.get(key)
    if old is None or new is None or not (is_number(old) and is_number(new)):
        return ABSENT, ""
    decimals = metric.decimals if metric else 4
    verdict = ""
    if metric and metric.better and old != new:
        verdict = "better" if (new < old) == (metric.better == "lower") else "worse"
    return figure(new - old, decimals, signed=True), verdict


def _configuration(family: Family, swept: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Each key of the model, and the baseline's value where the sweep could change it."""
    baseline: Row = next((row for row in family.trials if row["status"] == "baseline"), {})
    for key, value in _flat(family.model):
        given = baseline.get(key, "") if key in swept else ""
        yield {"key": key, "value": _text(value), "baseline": given, "swept": "swept" if key in swept else ""}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The numeric entries with what is known of them, in a fixed order."""
    return in_order((key for key, value in values.items() if is_number(value)), {**METRICS, **PARITY})
