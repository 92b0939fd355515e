"""Matrices of bilinear interpolation: their values, and how they are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references import bilinear_axis

from diffseg.attention.bilinear import CACHED_MATRICES, bilinear_matrix


@pytest.mark.parametrize(("tokens", "samples", "start", "stop"), [(8, 30, 0, 8), (8, 3, 1.5, 6), (1, 4, 0, 1)])
def test_it_agrees_with_elements(tokens: int, samples: int, start: float, stop: float) -> None:
    matrix = bilinear_matrix(tokens, samples, start=start, stop=stop)
    assert matrix.dtype == torch.float32
    np.testing.assert_allclose(matrix.numpy(), bilinear_axis(tokens, samples, start, stop), atol=1e-6)


def test_a_matrix_is_made_once_for_each_size_and_device() -> None:
    first = bilinear_matrix(8, 31)
    assert bilinear_matrix(8, 31) is first
    assert bilinear_matrix(8, 31, stop=7.5) is not first
    assert bilinear_matrix(8, 31, device=torch.device("meta")).device.type == "meta"


def test_a_bounded_number_of_matrices_is_kept() -> None:
    for samples in range(1, CACHED_MATRICES + 10):
        bilinear_matrix(4, samples)
    assert bilinear_matrix.cache_info().currsize == CACHED_MATRICES


def test_a_matrix_that_was_made_in_inference_mode_can_be_used_in_training() -> None:
    with torch.inference_mode():
        matrix = bilinear_matrix(8, 47)
    values = torch.ones(8, requires_grad=True)
    (matrix @ values).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, matrix.sum(dim=0))
