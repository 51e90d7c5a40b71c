"""A tiny project folder with real files: what a finished `dvc repro` leaves, in miniature."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config import ReportConfig
from pipeline.data.quarantine import Entry, write_ledger
from pipeline.report.inputs import SWEEP

FAMILIES = ("vae", "cvae", "vqvae", "autoencoder", "hierarchical")
CONFIG = ReportConfig(title="Digits, three ways", data_images=8)
SWEPT: Mapping[str, tuple[str, ...]] = {
    "vae": ("beta", "latent_dim"),
    "cvae": ("beta", "latent_dim"),
    "vqvae": ("num_codes", "code_dim"),
    "autoencoder": ("latent_dim", "likelihood"),
    "hierarchical": ("groups", "latent_channels"),
}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "vae": {
        "kind": "vae",
        "latent_dim": 15,
        "network": {"kind": "mlp", "hidden": [400, 400], "activation": "relu"},
        "beta": 0.75,
        "likelihood": "bernoulli",
        "condition": "none",
    },
    "vqvae": {
        "kind": "vqvae",
        "num_codes": 256,
        "code_dim": 8,
        "network": {"kind": "conv", "channels": 32, "downsamples": 2, "residual_blocks": 1, "activation": "relu"},
        "commitment_weight": 0.25,
        "likelihood": "gaussian",
    },
    "autoencoder": {
        "kind": "autoencoder",
        "latent_dim": 12,
        "network": {"kind": "mlp", "hidden": [400], "activation": "silu"},
        "likelihood": "bernoulli",
        "condition": "none",
    },
    "hierarchical": {
        "kind": "hierarchical",
        "network": {"kind": "residual", "channels": 16, "downsamples": None, "residual_blocks": 1},
        "groups": 2,
        "latent_channels": 4,
        "beta": {"kind": "linear", "start": 0.0, "end": 1.0, "until": 0.3},
        "likelihood": "discretised_logistic",
        "condition": "none",
    },
}
MODELS = {**MODELS, "cvae": {**MODELS["vae"], "condition": "label"}}

PICTURES: Mapping[str, tuple[str, ...]] = {
    "vae": ("reconstructions", "samples", "interpolation", "traversal"),
    "cvae": ("reconstructions", "samples", "interpolation", "traversal", "style"),
    "vqvae": ("reconstructions", "interpolation", "codes"),
    "autoencoder": ("reconstructions", "interpolation", "traversal"),
    "hierarchical": ("reconstructions", "samples", "interpolation", "traversal"),
}
FINDINGS: Mapping[str, list[dict[str, str]]] = {
    "cvae": [
        {
            "name": "collapsed_posterior",
            "evidence": "The code is ignored: the rate is 0.31 nats, less than one bit an image.",
            "remedy": "Raise beta from 0 over the first tenth of the run, or set free_bits.",
        },
        {
            "name": "blurred",
            "evidence": "Reconstructions keep 22% of the images' fine detail.",
            "remedy": "Raise latent_dim or the width of network, or lower beta.",
        },
    ],
    "vqvae": [
        {"name": "dead_codes", "evidence": "Only 9% of the 256 codes occur.", "remedy": "Lower num_codes or code_dim."}
    ],
}

LEDGER = (
    Entry("digits.csv.gz", "row-17", "copy_in_other_split", "the same image is in a split that goes before"),
    Entry("digits.csv.gz", "row-98", "copy_in_other_split", "the same image is in a split that goes before"),
    Entry("digits.csv.gz", "row-3", "unreadable", "expected 64 numbers, found 63"),
)


class Digits:
    """The part of pipeline.data's split that the report uses, over scikit-learn's digits."""

    def __init__(self) -> None:
        digits = load_digits()
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        self._labels = digits.target.astype(np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def images(self, rows: np.ndarray) -> np.ndarray:
        return self._images[rows]

    def labels(self, rows: np.ndarray) -> np.ndarray | None:
        return self._labels[rows]


def write_project(root: Path) -> None:
    """Everything the report reads, but for the shards themselves: their place is taken by `Digits`."""
    write_json(root / "data/shards/manifest.json", {})
    write_json(root / "data/dataset.json", dataset())
    write_ledger(root / "data/quarantine.parquet", LEDGER)
    for number, family in enumerate(FAMILIES):
        write_family(root, family, number)


def dataset() -> dict[str, Any]:
    return {
        "name": "digits",
        "files": {"digits.csv.gz": "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"},
        "image": {"height": 8, "width": 8, "channels": 1},
        "classes": [str(digit) for digit in range(10)],
        "counts": {"train": 1297, "val": 160, "test": 180},
        "attributes": [],
        "embedding": 0,
        "generations": [{"train": 1297, "val": 160, "test": 180}],
        "statistics": {"mean": [77.8125], "std": [95.6], "min": [0], "max": [255]},
        "quarantined": {"copy_in_other_split": 2, "unreadable": 1},
        "rows_in": 1640,
        "rows_prepared": 1637,
        "rows_quarantined": 3,
        "duplicate_images": 1,
        "duplicates_across_splits": 2,
        "test_images_also_in_train": 0,
        "digest": "5d41402abc4b2a76b9719d911017c592ae4f7a2c4d1f3b5e8c9a0b1c2d3e4f50",
    }


def metrics(family: str, number: int) -> dict[str, dict[str, dict[str, float | int]]]:
    def of(shift: float) -> dict[str, float | int]:
        if family == "vqvae":
            return {
                "rows": 180,
                "neg_elbo_nats": -412.73519 + shift,
                "distortion_nats": -490.3667 + shift,
                "rate_nats": 77.63151,
                "mse": 0.0041127,
                "codebook_used_fraction": 0.9921875,
                "codebook_perplexity": 101.53,
                "psnr_db": 23.9 - shift / 10,
                "probe_accuracy": 0.91733 - shift / 100,
                "prior_nats": 55.2031,
                "neg_elbo_learned_prior_nats": -435.1636 + shift,
                "prior_saving_fraction": 0.2889,
                "coded_images": 180,
                "coded_bits": 80.71,
                "coded_over_prior_cost": 1.0134,
                "sample_classifier_frechet": 1.2345 + shift,
                "sample_classifier_kernel": -0.00021,
            }
        if family == "autoencoder":
            return {
                "rows": 180,
                "distortion_nats": 70.125 + shift,
                "mse": 0.0098,
                "psnr_db": 20.4,
                "active_units": 12,
                "disentanglement_mig": 0.1234,
                "disentanglement_beta_vae": 0.875,
            }
        return {
            "rows": 180,
            "neg_elbo_nats": 101.26418 - 4 * number + shift,
            "distortion_nats": 75.1188 - 4 * number + shift,
            "rate_nats": 26.14538,
            "nll_nats": 96.86132 - 4 * number + shift,
            "nll_standard_error_nats": 0.2517,
            "nll_samples": 100,
            "mse": 0.0100731 + shift / 1000,
            "active_units": 15,
            "mutual_information_nats": 5.0123,
            "aggregate_kl_nats": 3.4,
            "marginal_mismatch_nats": 0.77,
            "bits_per_dimension": 2.28213,
            "bits_back_overhead": 0.125,
        }

    return {"baseline": {"test": of(2.61733)}, "best": {"test": of(0.0)}}


def write_family(root: Path, family: str, number: int) -> None:
    results = metrics(family, number)
    write(root / f"results/train/{family}/curves.tsv", curves(family == "vqvae", family != "autoencoder"))
    write(root / f"results/tune/{family}/trials.csv", trials(SWEPT[family], family != "autoencoder"))
    write_json(root / f"results/tune/{family}/best.json", {objective(family): {"trial": "trial-3"}})
    write_json(root / f"results/tune/{family}/importance.json", {} if family == "vae" else {"why": "too few trials"})
    for name in SWEEP:
        picture(root / f"results/tune/{family}/{name}.png", 640, 400)
    write_json(root / f"results/evaluate/{family}.json", results)
    write_json(root / f"results/diagnosis/{family}.json", FINDINGS.get(family, []))
    for name in PICTURES[family]:
        picture(root / f"results/evaluate/{family}/{name}.png", 640, 200)
    fingerprints = {"data": dataset()["digest"], "params": f"{number}f0e1d2c3b4a5968", "code": "0123456789abcdef"}
    spec = {"channels": 1, "height": 8, "width": 8, "num_classes": 10}
    write_json(
        root / f"artifacts/{family}/config.json", {"model": MODELS[family], "data": spec, "lineage": fingerprints}
    )
    encoder = "encoder_differing_codes_fraction" if family == "vqvae" else "encoder_max_abs_difference"
    parity = {encoder: 2.384e-06, "decoder_max_abs_difference": 7.15e-06, "images": 180}
    write_json(root / f"artifacts/{family}/metrics.json", {**results, "parity": parity})
    write(root / f"artifacts/{family}/decoder.onnx", "o" * 2345)


def curves(shifted: bool, has_rate: bool = True) -> str:
    names = [f"{split}_{part}_nats" for split in ("train", "val") for part in ("neg_elbo", "distortion", "rate")]
    lines = ["\t".join(("epoch", "step", "train_loss_nats", *names))]
    for epoch in range(1, 11):
        rate, distortion = 26.0 - 12 / epoch, 74.0 + 60 / epoch - (560 if shifted else 0)
        train = (rate + distortion, distortion, rate)
        values = (train[0], *train, train[0] + 1.4 - 3 / epoch, distortion + 1.2 - 3 / epoch, rate + 0.2)
        if not has_rate:
            values = tuple(value if at in (0, 2, 5) else math.nan for at, value in enumerate(values))
        lines.append("\t".join((str(epoch), str(epoch * 11), *(f"{value:.6f}" for value in values))))
    return "\n".join(lines) + "\n"


def objective(family: str) -> str:
    return "distortion_nats" if family == "autoencoder" else "neg_elbo_nats"


def trials(swept: tuple[str, ...], has_rate: bool = True) -> str:
    figures = ("val_neg_elbo_nats", "val_distortion_nats", "val_rate_nats")
    lines = [",".join(("trial", "status", "epochs", *swept, *figures, "metric", "best", "pareto"))]
    for number in range(7):
        status = "baseline" if number == 0 else "completed" if number < 4 else "stopped"
        epochs = 10 if number < 4 else 3 if number == 4 else 1
        value = 104.5 - 1.1 * number if number < 4 else 120.0 + number
        name = "baseline" if number == 0 else f"trial-{number}"
        best = str(number == 3).lower()
        scores = f"{value},{value - 25.5},25.5,{value}" if has_rate else f",{value - 25.5},,{value - 25.5}"
        lines.append(f"{name},{status},{epochs},0.{number + 2},{10 + 5 * number},{scores},{best},{best}")
    return "\n".join(lines) + "\n"


def picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (height, width))).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value))
