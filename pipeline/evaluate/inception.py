"""Inception features through torch-fidelity, for who has its weights; nothing is downloaded."""

import hashlib
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError

NAME = "Inception features (torch-fidelity)"  # what a figure made of them is to be called
FEATURES = 2048
WEIGHTS_SHA256 = "6726825d"  # begins the digest of weights-inception-2015-12-05-6726825d.pth, and so its name


def inception_features(weights: Path, device: torch.device | None = None) -> Callable[[Tensor], Tensor]:
    """A function from pixels [B, C, H, W] in 0 to 1, of one channel or three, to features [B, 2048].

    The network is that of the original FID; torch-fidelity resizes to 299 x 299 as that did. Pixels are rounded to
    256 levels, as they would be in an image file.

    Args:
        weights: weights-inception-2015-12-05-6726825d.pth, from torch-fidelity's release v0.2.0 on GitHub.

    Raises:
        UserError: torch-fidelity is not installed, or the file is missing or another.
    """
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise UserError(f"{NAME}: cannot import torch-fidelity ({error}); install it with"
                        " `pip install torch-fidelity`") from None  # fmt: skip
    check_weights(weights)
    network = module.FeatureExtractorInceptionV3(
        "inception-v3-compat", [str(FEATURES)], feature_extractor_weights_path=str(weights)
    ).to(device or torch.device("cpu"))

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        (found,) = network(as_rgb(x))
        extracted: Tensor = found
        return extracted

    return features


def check_weights(weights: Path, sha256: str = WEIGHTS_SHA256) -> None:
    """Refuse a file that is not the published weights, or that holds anything but tensors.

    torch-fidelity unpickles the file without restriction, so it is read with restriction first.

    Raises:
        UserError: naming the file.
    """
    if not weights.is_file():
        raise UserError(f"{NAME}: no file {weights}; download weights-inception-2015-12-05-6726825d.pth from"
                        " torch-fidelity's release v0.2.0 and give its path")  # fmt: skip
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        raise UserError(f"{NAME}: {weights} has SHA-256 {digest[:8]}..., expected {sha256}...; it is not the published"
                        " file, and distances made with it could not be compared with any other")  # fmt: skip
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{NAME}: {weights} holds more than tensors, or is damaged: {str(error)[:80]}") from None


def as_rgb(x: Tensor) -> Tensor:
    """Pixels [B, C, H, W] in 0 to 1 as uint8 [B, 3, H, W]; one channel is shown as grey.

    Raises:
        UserError: neither one channel nor three.
    """
    if x.shape[1] not in (1, 3):
        raise UserError(f"{NAME}: expected images of 1 or 3 channels, got {x.shape[1]}")
    levels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).contiguous()
