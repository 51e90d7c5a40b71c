"""What is measured of codes: how many of them are used, and what they cost to write down."""

import math
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor

from pipeline.evaluate.seen import Seen
from vae_core.coding import decode_codes, encode_codes
from vae_core.metrics.codebook import CodebookUsage
from vae_core.metrics.means import Means
from vae_core.models import CodeModel
from vae_core.models.base import Codes
from vae_core.priors import CodePrior, uniform_nats

LOG_2 = math.log(2)


class Codebook:
    """Use of the codes; under a learned prior what they cost, and for some images the bytes that they really take."""

    def __init__(self, model: CodeModel, prior: CodePrior | None, coded_images: int) -> None:
        self.prior, self.wanted = prior, coded_images
        self.usage, self.means = CodebookUsage(model.num_codes, levels=len(model.grids)), Means()
        self.coded: list[Codes] = []
        self.conditions: list[Tensor] = []
        self.names = [*_usage_names(len(model.grids))]
        if prior is not None:
            self.names += ["prior_nats", "prior_saving_fraction"]
            self.names += ["coded_images", "coded_bits", "coded_over_prior_cost"] if coded_images else []

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        codes, weight = cast(Codes, seen.latent), seen.batch.weight
        self.usage.add(codes, weight)
        if self.prior is None:
            return
        self.means.add({"prior_nats": self.prior.nll(codes, seen.c)}, weight)
        missing = self.wanted - sum(len(part[0]) for part in self.coded)
        if missing > 0:
            self.coded.append(tuple(level[weight > 0][:missing].cpu() for level in codes))
            self.conditions += [] if seen.c is None else [seen.c[weight > 0][:missing].cpu()]

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        figures = self.usage.compute()
        if self.prior is None:
            return figures
        nats = self.means.compute()["prior_nats"]
        figures["prior_nats"] = nats
        figures["prior_saving_fraction"] = 1 - nats / uniform_nats(self.prior)
        return figures | (self._written(self.prior) if self.coded else {})

    def _written(self, prior: CodePrior) -> dict[str, float]:
        """Bits an image of a file of codes that was written and read back.

        Raises:
            RuntimeError: the codes came back changed.
        """
        codes = tuple(torch.cat(level) for level in zip(*self.coded, strict=True))
        c = torch.cat(self.conditions) if self.conditions else None
        on_cpu = deepcopy(prior).to("cpu")  # the only place where coding gives the same bytes again
        data = encode_codes(on_cpu, codes, c)
        back = decode_codes(on_cpu, data, c)
        if not all(torch.equal(one, other) for one, other in zip(codes, back, strict=True)):
            raise RuntimeError("the entropy coder gave other codes back")
        images = len(codes[0])
        expected = float(on_cpu.nll(codes, c).double().mean()) / LOG_2
        return {
            "coded_images": images,
            "coded_bits": 8 * len(data) / images,
            "coded_over_prior_cost": 8 * len(data) / images / expected,
        }


def _usage_names(levels: int) -> list[str]:
    each = ["codebook", *(f"codebook_level{level}" for level in range(levels if levels > 1 else 0))]
    return [f"{of}_{name}" for of in each for name in ("used_fraction", "perplexity")]
