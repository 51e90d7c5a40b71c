"""The loop that a competent person writes by hand: everything in memory, fused Adam, nothing logged, nothing saved."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.training.clock import Ended
from bench.training.peers import images, layers, neg_elbo
from pipeline.train.run import TrainRun


class Net(nn.Module):
    def __init__(self, widths: tuple[int, ...], latent_dim: int) -> None:
        super().__init__()
        self.encoder = mlp(*widths, 2 * latent_dim)
        self.decoder = mlp(latent_dim, *widths[::-1])

    def forward(self, x: Tensor) -> Tensor:
        """The mean negative ELBO of binary pixels [B, P], in nats."""
        mean, log_var = self.encoder(x).float().chunk(2, dim=1)
        logits = self.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)).float()
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
        return (distortion + rate) / len(x)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with silu between them."""
    pairs = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*pairs[:-1])


def fit(run: TrainRun, ended: Ended) -> None:
    pixels = images(run).flatten(1)
    torch.manual_seed(run.train.seed)
    net = Net(*layers(run))
    loss_of = torch.compile(net, dynamic=False) if run.train.compile == "on" else net
    optimizer = torch.optim.Adam(net.parameters(), lr=run.train.learning_rate, fused=True)
    for _ in range(run.train.epochs):
        for rows in torch.randperm(len(pixels)).split(run.train.global_batch_size):
            x = torch.bernoulli(pixels[rows])
            with torch.autocast("cpu", torch.bfloat16, enabled=run.train.precision == "bf16"):
                loss = loss_of(x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        ended(lambda: neg_elbo(run, net.parameters()))
