"""Sums, samples and clusters of the encoder outputs of all ranks, the same on any number of them.

Every collective is of a size that the configuration fixes, so that no rank can wait for another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_core.distributed import all_reduce_sum
from vae_core.noise import Noise

SHORTEST = 1e-4  # shorter vectors are not scaled up to length 1: the gradient grows as 1 / length
LLOYD_ITERATIONS = 10


def unit(vectors: Tensor, dim: int) -> Tensor:
    """`vectors` scaled to length 1 along `dim`."""
    return F.normalize(vectors, dim=dim, eps=SHORTEST)


def nearest_rows(vectors: Tensor, table: Tensor) -> Tensor:
    """int64 [...]: the row of `table` [K, D] at the least Euclidean distance of each of `vectors` [..., D].

    Of equally near rows it is the first. For vectors of length 1 this is the row of the largest cosine.
    """
    vectors, table = vectors.detach(), table.detach()
    # |v - t|^2 without |v|^2, which is the same for every row
    distance = torch.addmm(table.square().sum(1), vectors.flatten(0, -2), table.T, alpha=-2)
    return distance.argmin(1).view(vectors.shape[:-1])


def sums_by_code(codes: Tensor, values: Tensor, num_codes: int) -> Tensor:
    """[K, F]: the sum of the rows of `values` [N, F] of each code; always in the same order, so to the same bit."""
    totals = values.new_zeros(num_codes, values.shape[1])
    if values.is_cuda:
        return totals.index_put_((codes,), values, accumulate=True)  # sorts first; index_add_ adds in any order there
    return totals.index_add_(0, codes, values)


def start_places(count: int, outputs: int, noise: Noise, purpose: str) -> Tensor:
    """int64 [count]: places among the `outputs` of the global batch, all different where there are enough."""
    order = torch.randperm(outputs, generator=noise.generator(f"{purpose}/start"), device=noise.position.device)
    return order[torch.arange(count, device=order.device) % outputs]


def held_here(places: Tensor, vectors: Tensor, weight: Tensor, noise: Noise) -> Tensor:
    """[K, D]: the encoder output at each place of the global batch; zeros where another rank holds it.

    Args:
        places: int64 [K]; row x positions + position.
        vectors: [B, P, D] this rank's outputs.
        weight: [B]; 0 for padding, which is never taken.
    """
    positions = vectors.shape[1]
    row, position = places // positions, places % positions
    held = (row[:, None] == noise.position[None, :]) & (weight[None, :] > 0)  # [K, B]
    return vectors[held.int().argmax(1), position] * held.any(1)[:, None]


def kmeans(centres: Tensor, vectors: Tensor, weight: Tensor, *, cosine: bool) -> Tensor:
    """[K, D]: `centres` after Lloyd's iterations over the vectors of all ranks; a centre without a vector stays.

    Args:
        centres: [K, D], the same on every rank.
        vectors: [N, D] of this rank.
        weight: [N]; those of weight 0 do not count.
        cosine: of vectors of length 1 by their angle (spherical k-means).
    """
    # In float64, so that the order of the sum, which depends on the number of ranks, leaves no trace in float32.
    counted = torch.cat((weight[:, None], vectors * weight[:, None]), dim=1).double()
    for _ in range(LLOYD_ITERATIONS):
        codes = nearest_rows(vectors, unit(centres, 1) if cosine else centres)
        count, total = all_reduce_sum(sums_by_code(codes, counted, len(centres))).tensor_split((1,), dim=1)
        centres = torch.where(count > 0, total / count, centres.double()).float()
    return centres
