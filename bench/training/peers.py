"""What the peers share: the images in memory, the sizes of the layers, and the one evaluation."""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.data.loader import Loader
from pipeline.errors import UserError
from pipeline.train.loop import build, evaluate
from pipeline.train.run import TrainRun
from vae_core.config import MLPConfig, VAEConfig

CPU = torch.device("cpu")


def layers(run: TrainRun) -> tuple[tuple[int, ...], int]:
    """Widths of the encoder from the pixels to its last hidden layer, and the number of latent dimensions.

    Raises:
        UserError: the model is another than the peers are written for.
    """
    model = run.model
    if isinstance(model, VAEConfig) and isinstance(model.network, MLPConfig) and model.network.activation == "silu":
        if model == VAEConfig(kind="vae", latent_dim=model.latent_dim, network=model.network):
            pixels = math.prod(run.open("train").spec.shape)
            return (pixels, *model.network.hidden), model.latent_dim
    raise UserError(
        "params.yaml: models.vae: the peers are written for a plain VAE of fully connected layers with silu, "
        f"binary pixels and beta 1; found {model}"
    )


@lru_cache(maxsize=1)
def images(run: TrainRun) -> Tensor:
    """The training split in memory, float32 [N, C, H, W] in [0, 1]."""
    split = run.open("train")
    whole = next(Loader(split, 0, 1, len(split)).sequential(len(split)))
    return whole.images.contiguous().float() / 255


def neg_elbo(run: TrainRun, parameters: Iterable[Tensor]) -> float:
    """Validation -ELBO in nats of a peer's weights, encoder first, judged in our model as ours are.

    The layers are the same, so is what they compute: our log-variances are the identity between -10 and 10.
    """
    split = run.open("val")
    model = build(run, split.spec)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), parameters, strict=True):
            assert ours.shape == theirs.shape
            ours.copy_(theirs)
    loader = Loader(split, run.train.seed, run.train.window_shards, run.train.global_batch_size)
    return evaluate(model, loader, seed=run.train.seed, device=CPU)["neg_elbo_nats"]
