"""The arithmetic of a training, and that it ends with the block."""

import torch

from pipeline.train.computing import computing

TINY = 1e-40  # below the smallest normal float32


def test_numbers_too_small_to_be_normal_are_zero_inside_alone() -> None:
    with computing(1):
        assert (torch.full((4,), TINY) * 1.5).tolist() == [0.0] * 4
    assert (torch.full((4,), TINY) * 1.5).all()


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    try:
        with computing(3):
            assert torch.get_num_threads() == 3
            raise KeyError
    except KeyError:
        assert torch.get_num_threads() == before
