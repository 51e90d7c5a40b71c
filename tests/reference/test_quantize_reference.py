"""Codebooks and grids against vector-quantize-pytorch, which shares no code with ours."""

from typing import Any

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans as kmeans_of_reference

from vae_core.config import ConvConfig, VQVAEConfig
from vae_core.noise import Noise
from vae_core.quantize import Codebook, FiniteScalar, build_quantizer
from vae_core.quantize.statistics import kmeans

DIM, CODES, DECAY = 6, 20, 0.8


def outputs(seed: int, dim: int = DIM) -> Tensor:
    """Encoder outputs [5, dim, 4, 4]."""
    return torch.randn(5, dim, 4, 4, generator=torch.Generator().manual_seed(seed))


def pair(kind: str, distance: str) -> tuple[Codebook, VectorQuantize]:
    """Ours and theirs, with the same codes and without restarts."""
    config = VQVAEConfig(
        kind="vqvae",
        num_codes=CODES,
        code_dim=DIM,
        network=ConvConfig(kind="conv", channels=4),
        codebook=kind,
        distance=distance,
        ema_decay=DECAY,
        restart_below=0.0,
    )
    learned: dict[str, Any] = {"ema_update": False, "learnable_codebook": True} if kind == "loss" else {}
    theirs = VectorQuantize(
        DIM,
        CODES,
        decay=DECAY,
        use_cosine_sim=distance == "cosine",
        accept_image_fmap=True,
        rotation_trick=False,
        **learned,
    )
    ours = build_quantizer(config)
    assert isinstance(ours, Codebook)
    with torch.no_grad():
        ours.codebook.copy_(theirs.codebook)
    ours.started.fill_(True)
    return ours, theirs


every_codebook = pytest.mark.parametrize(
    ("kind", "distance"), [("ema", "euclidean"), ("ema", "cosine"), ("loss", "euclidean")]
)


@every_codebook
def test_codes_vectors_and_the_gradient_of_the_encoder_agree(kind: str, distance: str) -> None:
    ours, theirs = pair(kind, distance)
    here, there = outputs(1).requires_grad_(), outputs(1).requires_grad_()
    found = ours(here)
    quantized, codes, commitment = theirs(there)
    torch.testing.assert_close(found.vectors, quantized)
    assert torch.equal(found.codes, codes)
    wanted = outputs(2)
    (found.straight_through() * wanted).sum().backward(retain_graph=True)
    (quantized * wanted).sum().backward(retain_graph=True)
    torch.testing.assert_close(here.grad, there.grad)
    here.grad = there.grad = None
    (found.encoded - found.vectors.detach()).square().mean().backward(retain_graph=True)
    commitment.sum().backward()
    torch.testing.assert_close(here.grad, there.grad)


def test_the_codebook_term_has_the_gradient_of_theirs() -> None:
    ours, theirs = pair("loss", "euclidean")
    found, (_, _, loss) = ours(outputs(1)), theirs(outputs(1))
    (found.vectors - found.encoded).square().mean().backward()
    loss.sum().backward()
    torch.testing.assert_close(ours.codebook.grad, theirs._codebook.embed.grad[0])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codes_move_as_theirs_over_several_steps(distance: str) -> None:
    """To the width of their smoothing of the counts (1e-5 a code), which ours do without."""
    ours, theirs = pair("ema", distance)
    for step in range(6):
        z = outputs(step)
        noise = Noise(seed=0, scope="train", step=step, position=torch.arange(5), rows=5)
        found = ours(z)
        ours.update(found.encoded, found.codes, torch.ones(5), noise, torch.tensor(True))
        theirs(z)
        torch.testing.assert_close(ours.vectors(), theirs.codebook, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.counts, theirs._codebook.cluster_size[0])


@pytest.mark.parametrize("cosine", [False, True])
def test_kmeans_agrees(cosine: bool) -> None:
    points = outputs(3).movedim(1, -1).flatten(0, 2)
    points = torch.nn.functional.normalize(points, dim=1) if cosine else points
    start = points[:7]
    theirs, _ = kmeans_of_reference(points[None], 7, use_cosine_sim=cosine, sample_fn=lambda *_: start[None])
    ours = kmeans(start, points, torch.ones(len(points)), cosine=cosine)
    ours = torch.nn.functional.normalize(ours, dim=1) if cosine else ours
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [3, 4, 5, 6, 8, 9])
def test_finite_scalars_agree_in_codes_vectors_and_gradient(levels: int) -> None:
    ours, theirs = FiniteScalar(levels=levels, code_dim=3), FSQ([levels] * 3)
    here, there = (3 * outputs(4, dim=3)).requires_grad_(), (3 * outputs(4, dim=3)).requires_grad_()
    found = ours(here)
    quantized, codes = theirs(there)
    assert torch.equal(found.codes, codes.long())
    torch.testing.assert_close(found.straight_through(), quantized)
    torch.testing.assert_close(ours.lookup(found.codes), theirs.indices_to_codes(codes))
    wanted = outputs(5, dim=3)
    (found.straight_through() * wanted).sum().backward()
    (quantized * wanted).sum().backward()
    torch.testing.assert_close(here.grad, there.grad)
