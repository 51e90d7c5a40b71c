"""Vector quantisation: each vector of a grid is replaced by one of `num_codes`. `build_quantizer` is the dispatch."""

from typing import assert_never

from vae_core.config import QuantizedConfig
from vae_core.quantize.base import Quantized, Quantizer
from vae_core.quantize.codebook import Codebook, EMACodebook, LossCodebook
from vae_core.quantize.fsq import FiniteScalar

__all__ = ["Codebook", "EMACodebook", "FiniteScalar", "LossCodebook", "Quantized", "Quantizer", "build_quantizer"]


def build_quantizer(config: QuantizedConfig) -> Quantizer:
    """The quantizer that `config.codebook` names, not yet started."""
    match config.codebook:
        case "ema":
            return EMACodebook(config)
        case "loss":
            return LossCodebook(config)
        case "fsq":
            return FiniteScalar(levels=config.fsq_levels, code_dim=config.code_dim)
        case other:
            assert_never(other)
