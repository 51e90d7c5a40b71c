"""Inception features: everything around torch-fidelity's network, which is not run here for want of its weights."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.evaluate import inception
from pipeline.evaluate.inception import as_rgb, check_weights, inception_features

MODULE = "torch_fidelity.feature_extractor_inceptionv3"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


class StandIn(nn.Module):
    """Takes and gives what torch-fidelity 0.4.0's FeatureExtractorInceptionV3 does."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        self.given = name, features_list, feature_extractor_weights_path

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        assert self.given[:2] == ("inception-v3-compat", ["2048"])
        return (x.float().mean((2, 3)),)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(MODULE)
    module.FeatureExtractorInceptionV3 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)


def test_without_torch_fidelity_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(UserError, match=r"cannot import torch-fidelity .* `pip install torch-fidelity`"):
        inception_features(tmp_path / "weights.pth")


@pytest.mark.usefixtures("stand_in")
def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*weights.pth; download weights-inception-2015-12-05-6726825d.pth"):
        inception_features(tmp_path / "weights.pth")


@pytest.mark.usefixtures("stand_in")
def test_other_weights_are_refused_by_their_digest(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match=rf"weights.pth has SHA-256 {sha256(weights)}\.\.\., expected 6726825d\.\.\."):
        inception_features(weights)


def test_a_file_of_tensors_passes(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    check_weights(weights, sha256(weights))


class Payload:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the file was executed')",)


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"a": Payload()}, weights)
    with pytest.raises(UserError, match="holds more than tensors, or is damaged"):
        check_weights(weights, sha256(weights))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(content)
    with pytest.raises(UserError, match="holds more than tensors, or is damaged"):
        check_weights(weights, sha256(weights))


@pytest.mark.usefixtures("stand_in")
def test_the_network_gets_three_channels_of_bytes_and_its_one_tensor_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "check_weights", lambda weights: None)
    features = inception_features(tmp_path / "weights.pth")
    found = features(torch.full((2, 1, 4, 4), 0.5))
    torch.testing.assert_close(found, torch.full((2, 3), 128.0))


def test_pixels_become_levels_and_grey_is_shown_in_three_channels() -> None:
    x = torch.tensor([-0.1, 0.0, 0.5 / 255, 0.9 / 255, 1.0, 1.7]).view(1, 1, 2, 3)
    assert as_rgb(x)[0, 0].flatten().tolist() == [0, 0, 0, 1, 255, 255]
    assert as_rgb(x).shape == (1, 3, 2, 3)
    colour = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(as_rgb(colour).float() / 255, colour, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_other_channels_are_refused(channels: int) -> None:
    with pytest.raises(UserError, match=f"expected images of 1 or 3 channels, got {channels}"):
        as_rgb(torch.zeros(1, channels, 4, 4))
