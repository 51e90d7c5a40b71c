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
    "neg_iwae_bound_nats": Metric(
        "Training bound",
        NATS,
        "The importance-weighted bound of as many draws as training takes: below the negative ELBO.",
        better="lower",
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
    "bits_per_dimension": Metric(
        "Bits per dimension",
        "bits",
        "The negative ELBO in bits for each pixel and channel; only likelihoods of discrete pixels have it.",
        decimals=4,
        better="lower",
    ),
    "mse": Metric(
        "Mean squared error",
        "pixels in [0, 1]",
        "Between the grey image and the mean of its reconstruction, averaged over pixels.",
        decimals=5,
        better="lower",
    ),
    "psnr_db": Metric("PSNR", "dB", "Peak signal-to-noise ratio of reconstructions, over images.", better="higher"),
    "ssim": Metric(
        "SSIM",
        "at most 1",
        "Structural similarity of image and reconstruction (Gaussian window of 11), the mean over images.",
        decimals=4,
        better="higher",
    ),
    "sharpness_ratio": Metric(
        "Sharpness kept",
        "ratio",
        "Variance of the Laplacian of reconstructions over that of the images: 1 is as sharp, 0 is flat.",
        decimals=3,
        better="higher",
    ),
    "effective_samples": Metric(
        "Effective importance samples",
        "an image",
        "How many of the k draws carry the estimate of the NLL; few mean a loose bound.",
    ),
    "few_effective_samples_fraction": Metric(
        "Images with few effective samples", "share, 0 to 1", "Whose NLL rests on fewer than ten draws.", decimals=3
    ),
    "active_units": Metric(
        "Active units",
        "latent dimensions",
        "Dimensions whose posterior mean moves with the image (variance above 0.01); the others have collapsed.",
        -1,
    ),
    "mutual_information_nats": Metric(
        "Mutual information I(x; z)",
        NATS,
        "What the code tells of the image; at most the logarithm of the number of images.",
    ),
    "mutual_information_limit_nats": Metric("Limit of that estimate", NATS, "log of the images used.", compared=False),
    "mutual_information_standard_error_nats": Metric(
        "Standard error of the mutual information", NATS, "Over the draws.", decimals=3, compared=False
    ),
    "aggregate_kl_nats": Metric(
        "KL of the aggregate posterior",
        NATS,
        "KL(q(z) ‖ p(z)): the part of the rate that tells nothing of the image; high where samples miss the data.",
        better="lower",
    ),
    "aggregate_rows": Metric("Images in the aggregate posterior", "rows", "", decimals=-1, compared=False),
    "marginal_mismatch_nats": Metric(
        "Mismatch of the moments", NATS, "KL of the mean and variance of q(z) to the prior, summed over dimensions."
    ),
    "amortisation_gap_nats": Metric(
        "Amortisation gap", NATS, "What a posterior fitted to each image alone would save.", better="lower"
    ),
    "annealed_nll_nats": Metric(
        "NLL by annealed importance sampling", NATS, "An independent check, on the first images only.", better="lower"
    ),
    "annealed_rows_nll_nats": Metric("Importance-weighted NLL of the same images", NATS, "", better="lower"),
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
    **{
        f"codebook_level{level}_{name}": Metric(f"{label}, level {level}", unit, "Level 0 is the top one.", decimals)
        for level in range(4)
        for name, label, unit, decimals in (
            ("used_fraction", "Codes in use", "share, 0 to 1", 3),
            ("perplexity", "Perplexity", "codes", 2),
        )
    },
    "commitment_squared_distance": Metric(
        "Commitment distance",
        "squared, an example",
        "From the encoder's output to its codes, summed over positions and dimensions, in the encoder's own scale.",
        decimals=3,
    ),
    "prior_nats": Metric(
        "Rate under the learned prior", NATS, "What the codes of a test image cost under the autoregressive prior."
    ),
    "neg_elbo_learned_prior_nats": Metric(
        "Negative ELBO, learned prior",
        NATS,
        "Distortion + rate under the learned prior, which came after the sweep and does not judge it.",
        better="lower",
    ),
    "prior_saving_fraction": Metric(
        "Saved by the learned prior", "share, 0 to 1", "Of what a uniform prior would charge.", decimals=3
    ),
    "coded_bits": Metric(
        "Coded size",
        "bits an image",
        "Of a file of codes written under the prior and decoded back exactly.",
        1,
    ),
    "coded_over_prior_cost": Metric("Coded size over the prior's cost", "ratio", "1 is the limit.", decimals=4),
    "coded_images": Metric("Images coded", "rows", "", decimals=-1, compared=False),
    "probe_accuracy": Metric(
        "Linear probe",
        "accuracy, 0 to 1",
        "Of a linear classifier of the labels on the code, learned from training images.",
        decimals=4,
        better="higher",
    ),
    "sample_classifier_frechet": Metric(
        "Fréchet distance of samples",
        "classifier features",
        "Between samples and test images, in features of a classifier trained here; compares within one data set only.",
        better="lower",
    ),
    "sample_classifier_kernel": Metric(
        "Kernel distance of samples", "classifier features", "Likewise, squared and unbiased.", 5, better="lower"
    ),
    "reconstruction_classifier_frechet": Metric(
        "Fréchet distance of reconstructions",
        "classifier features",
        "Between reconstructions and test images.",
        better="lower",
    ),
    "reconstruction_classifier_kernel": Metric(
        "Kernel distance of reconstructions", "classifier features", "Likewise.", 5, better="lower"
    ),
    **{
        f"{what}_inception_{kind}": Metric(
            f"{label} of {what}s", "Inception features", "By torch-fidelity's network.", decimals, better="lower"
        )
        for what in ("sample", "reconstruction")
        for kind, label, decimals in (("frechet", "Fréchet distance", 2), ("kernel", "Kernel distance", 5))
    },
    **{
        f"disentanglement_{name}": Metric(label, "0 to 1", meaning, decimals=3, better="higher")
        for name, label, meaning in (
            ("mig", "MIG", "Mutual information gap: does one dimension alone know a factor?"),
            ("dci_disentanglement", "DCI disentanglement", "Does a dimension serve one factor?"),
            ("dci_completeness", "DCI completeness", "Does a factor live in one dimension?"),
            ("dci_informativeness", "DCI informativeness", "Can the factors be read at all?"),
            ("sap", "SAP", "Separated attribute predictability, linear."),
            ("modularity", "Modularity", "Does a dimension depend on one factor at most?"),
            ("explicitness", "Explicitness", "Can a linear classifier read each factor?"),
            ("factor_vae", "FactorVAE score", "Majority vote on the dimension that varies least."),
            ("beta_vae", "β-VAE score", "Linear classifier of the factor held fixed."),
        )
    },
    "rows": Metric("Test images", "rows", "The whole test split, each image once.", decimals=-1, compared=False),
}

PARITY: Mapping[str, Metric] = {
    "encoder_max_abs_difference": Metric("Encoder", "largest absolute difference", "", -2),
    "decoder_max_abs_difference": Metric("Decoder", "largest absolute difference", "", -2),
    "encoder_differing_codes_fraction": Metric("Encoder", "share of codes that differ", "", -2),
    "images": Metric("Compared on", "test images", "", -1),
}

FILES: Mapping[str, str] = {
    "model.safetensors": "weights",
    "config.json": "model, data shape and lineage",
    "metrics.json": "test metrics and parity",
    "encoder.onnx": "encoder, for any ONNX runtime",
    "decoder.onnx": "decoder, for any ONNX runtime",
    "prior.safetensors": "weights of the prior over codes",
    "prior.json": "configuration of the prior",
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
