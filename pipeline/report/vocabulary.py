"""What the numbers are called, what they mean, and how they are written."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

NATS = "nats per example"
ABSENT = Markup('<span class="absent" title="not measured for this family">–</span>')


@dataclass(frozen=True, slots=True)
class Metric:
    """How one metric is shown. `decimals`: -1 for an integer, -2 for powers of ten."""

    label: str
    unit: str
    meaning: str
    decimals: int = 2
    better: Literal["lower", "higher", ""] = ""
    compared: bool = True


METRICS: Mapping[str, Metric] = {
    "neg_elbo_nats": Metric(
        "Negative ELBO, β = 1",
        NATS,
        "Distortion + rate, an upper bound on −log p(x). Every family and every trial is judged by this number.",
        better="lower",
    ),
    "distortion_nats": Metric(
        "Distortion",
        NATS,
        "−log p(x | z) with the image's own code z: what describing the image costs once its code is known.",
    ),
    "rate_nats": Metric(
        "Rate",
        NATS,
        "What the code itself costs: KL(q(z | x) ‖ p(z)), or positions × log(codes) for a vector-quantised model.",
    ),
    "nll_nats": Metric(
        "Importance-weighted NLL",
        NATS,
        "−log p(x) from k importance samples an image: a tighter bound than the ELBO, and tighter as k grows.",
        better="lower",
    ),
    "nll_standard_error_nats": Metric(
        "Standard error of the NLL",
        NATS,
        "Of the mean over the test images: what another test set of this size would move.",
        decimals=3,
        compared=False,
    ),
    "nll_samples": Metric(
        "Importance samples, k",
        "an image",
        "Quote it with the NLL: bounds of different k do not compare.",
        decimals=-1,
        compared=False,
    ),
    "mse": Metric(
        "Mean squared error",
        "pixels in [0, 1]",
        "Between the grey image and the mean of its reconstruction, averaged over pixels.",
        decimals=5,
        better="lower",
    ),
    "active_units": Metric(
        "Active units",
        "latent dimensions",
        "Dimensions whose posterior mean moves with the image (variance above 0.01); the others have collapsed.",
        -1,
    ),
    "codebook_used_fraction": Metric(
        "Codebook in use",
        "share, 0 to 1",
        "Codes chosen at least once over the test split. Well below 1, the codebook has collapsed.",
        decimals=3,
        better="higher",
    ),
    "codebook_perplexity": Metric(
        "Codebook perplexity",
        "codes",
        "exp of the entropy of code use: how many equally used codes would be as varied. At most the codebook size.",
    ),
    "commitment_squared_distance": Metric(
        "Commitment distance",
        "squared, an example",
        "From the encoder's output to its codes, summed over positions and dimensions, in the encoder's own scale.",
        decimals=3,
    ),
    "rows": Metric("Test images", "rows", "The whole test split, each image once.", decimals=-1, compared=False),
}

PARITY: Mapping[str, Metric] = {
    "encoder_max_abs_difference": Metric("Encoder", "largest absolute difference", "", -2),
    "decoder_max_abs_difference": Metric("Decoder", "largest absolute difference", "", -2),
    "images": Metric("Compared on", "test images", "", -1),
}

FILES: Mapping[str, str] = {
    "model.safetensors": "weights",
    "config.json": "model, data shape and lineage",
    "metrics.json": "test metrics and parity",
    "encoder.onnx": "encoder, for any ONNX runtime",
    "decoder.onnx": "decoder, for any ONNX runtime",
    "README.md": "model card",
}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_order(keys: Iterable[str], known: Mapping[str, Metric]) -> Iterator[tuple[str, Metric]]:
    """The keys there are: known ones first, in the vocabulary's order, then the others by name."""
    there = set(keys)
    yield from ((key, metric) for key, metric in known.items() if key in there)
    for key in sorted(there - set(known)):
        unit = NATS if key.endswith("_nats") else ""
        label = key.removesuffix("_nats").replace("_", " ")
        yield key, Metric(label[:1].upper() + label[1:], unit, "", decimals=4)


def figure(value: Any, decimals: int, *, signed: bool = False) -> Markup:
    """A number as text, the exact one kept in the page for machines; a dash where there is none."""
    if not is_number(value) or not math.isfinite(value):
        return ABSENT
    return Markup('<data value="{}">{}</data>').format(value, written(value, decimals, signed=signed))


def written(value: float, decimals: int, *, signed: bool = False) -> str:
    """1234.5 -> 1,234.50; a true minus sign; -1 decimals for an integer where it is one, -2 for powers of ten."""
    sign = "+" if signed else ""
    if decimals == -1:
        decimals = 0 if float(value).is_integer() else 2
    text = f"{value:{sign}.2e}" if decimals == -2 else f"{value:{sign},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")  # a difference that rounds to nothing has no sign
    return text.replace("-", "−")


def channel_names(channels: int) -> tuple[str, ...]:
    known = {1: "gray", 2: "gray alpha", 3: "red green blue", 4: "red green blue alpha"}
    return tuple(known[channels].split()) if channels in known else tuple(f"channel {n}" for n in range(channels))


def size(count: int) -> str:
    """Bytes for people: 1.5 MB."""
    units = ("B", "kB", "MB", "GB")
    power = min(len(units) - 1, int(math.log10(max(count, 1))) // 3)
    return f"{count / 1000**power:,.{1 if power else 0}f} {units[power]}"
