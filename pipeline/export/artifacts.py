"""artifacts/F: everything that is needed to use the best model elsewhere."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline import files
from pipeline.config import ExportConfig
from pipeline.data.loader import Split
from pipeline.data.shape import described as described_shape
from pipeline.data.shape import things
from pipeline.errors import printable
from pipeline.evaluate.models import open_model, open_prior
from pipeline.export.onnx import COLUMNS, parts, write
from pipeline.export.parity import parity
from pipeline.kinds import KINDS
from vae_core.likelihoods import observe
from vae_core.noise import Noise
from vae_core.serialize import CONFIG, WEIGHTS


def export(
    family: str,
    model_folder: Path,
    prior_folder: Path,
    scores: dict[str, Any],
    split: Split,
    config: ExportConfig,
    out: Path,
) -> None:
    """Write the artifacts of one family's best model and, where there is one, of the prior over its codes; or nothing.

    Raises:
        UserError: an ONNX file does not compute what the torch model computes.
    """
    model, prior = open_model(model_folder), open_prior(prior_folder)
    batch = split.batch(np.arange(min(config.parity_images, len(split))))
    noise = Noise.of(batch, seed=0, scope="export", step=0)
    with files.new_directory(out) as temporary:
        with torch.no_grad():
            exported = parts(model, observe(batch.images, model.config.likelihood, noise), batch)
        for name, part in exported.items():
            write(part, temporary / f"{name}.onnx")
        agreement = parity(exported, temporary, tolerance=config.tolerance)
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(model_folder / name, temporary / name)
            if prior is not None:
                shutil.copyfile(prior_folder / name, temporary / f"prior{Path(name).suffix}")
        metrics = {**scores, "parity": agreement}
        files.write_json(temporary / "metrics.json", metrics)
        described = files.read_json(model_folder / CONFIG)
        names = {name: (list(part.inputs), list(part.outputs)) for name, part in exported.items()}
        files.write_text(temporary / "README.md", _card(family, described, metrics, split, names, prior is not None))


def _card(
    family: str,
    described: dict[str, Any],
    metrics: dict[str, Any],
    split: Split,
    onnx: dict[str, tuple[list[str], list[str]]],
    has_prior: bool,
) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.export", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("card.md").render(
        family=literal(family),
        kind=KINDS[described["model"]["kind"]],
        onnx=onnx,
        has_prior=has_prior,
        size=described_shape(split.manifest.shape),
        things=things(split.manifest.shape),
        condition=COLUMNS.get(described["model"]["condition"]),
        model=described["model"],
        data=described["data"],
        lineage=described["lineage"],
        source=literal(split.manifest.source),
        counts=split.manifest.counts,
        test=metrics["best"]["test"],
        parity=metrics["parity"],
    )


def literal(name: str) -> str:
    """A name as Markdown that shows just this name: neither markup nor HTML, on one line."""
    return re.sub(r"([\\`*\[\]<>&|#!])", r"\\\1", " ".join(printable(name).split()))
