"""What one rank does to codebooks, and what one process does with the joined batches: the same code, for
`test_codebooks`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import own_places
from torch import Tensor

from vae_core import distributed
from vae_core.batch import Batch
from vae_core.config import ConvConfig, DataSpec, VQVAE2Config, VQVAEConfig
from vae_core.models import build_model
from vae_core.noise import Noise
from vae_core.quantize import Codebook, build_quantizer
from vae_core.training import train_step

SIZES = (7, 1, 8, 5, 3)  # rows of the global batches: uneven for 2 and for 4 ranks, some with padding alone on a rank
CODES, DIM, POSITIONS = 12, 3, 4
NETWORK = ConvConfig(kind="conv", channels=4, downsamples=1, residual_blocks=1, activation="silu")
DATA = DataSpec(channels=1, height=8, width=8)


def config_of(**fields: Any) -> VQVAEConfig:
    return VQVAEConfig(
        kind="vqvae", num_codes=CODES, code_dim=DIM, network=NETWORK, ema_decay=0.6, restart_below=0.5, **fields
    )


CODEBOOKS = {
    "ema": config_of(),
    "ema-kmeans": config_of(start="kmeans"),
    "ema-kmeans-cosine": config_of(start="kmeans", distance="cosine"),
    "loss": config_of(codebook="loss"),
    "loss-kmeans": config_of(codebook="loss", start="kmeans"),
}
MODEL = VQVAE2Config(
    kind="vqvae2", num_codes=8, code_dim=3, network=NETWORK, codebook="loss", start="kmeans", restart_below=0.5
)


def outputs(step: int, rows: int) -> Tensor:
    """Encoder outputs of the global batch, [rows, D, 2, 2]."""
    return torch.randn(rows, DIM, 2, 2, generator=torch.Generator().manual_seed(step))


def follow(config: VQVAEConfig) -> dict[str, Any]:
    """The codebook after each step, and the size of each collective that it took part in."""
    made, states, sizes = build_quantizer(config), [], []
    assert isinstance(made, Codebook)
    reduce = dist.all_reduce

    def recorded(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sizes[-1].append(tensor.numel())
        return reduce(tensor, *args, **options)

    dist.all_reduce = recorded
    try:
        for step, rows in enumerate(SIZES):
            sizes.append([])
            places = own_places(rows)
            real = places < rows
            z = torch.where(real[:, None, None, None], outputs(step, rows)[places.clamp(max=rows - 1)], float("nan"))
            found = made(z)
            noise = Noise(1, "train", step, places, rows)
            made.update(found.encoded, found.codes, real.float(), noise, torch.tensor(True))
            states.append({"codebook": made.codebook.detach().clone(), "counts": made.counts.clone()})
    finally:
        dist.all_reduce = reduce
    return {"states": states, "collectives": sizes}


def train() -> dict[str, Tensor]:
    """The state of a model with two codebooks after some steps."""
    core = build_model(MODEL, DATA)
    optimizer = torch.optim.Adam(core.parameters())
    model = distributed.data_parallel(core, torch.device("cpu"))
    for step, rows in enumerate(SIZES):
        places = own_places(rows)
        weight, kept = (places < rows).float(), places.clamp(max=rows - 1)
        images = torch.randint(0, 256, (rows, 1, 8, 8), generator=torch.Generator().manual_seed(step)).byte()
        batch = Batch(images[kept], None, weight, kept, rows)
        noise = Noise.of(batch, seed=1, scope="train", step=step)
        train_step(model, batch, optimizer, noise=noise, learning_rate=1e-3, max_grad_norm=50.0)
    return {name: tensor.clone() for name, tensor in core.state_dict().items()}


def results(_: Path) -> dict[str, Any]:
    """Everything, as this process computes it."""
    return {"codebooks": {name: follow(config) for name, config in CODEBOOKS.items()}, "model": train()}
