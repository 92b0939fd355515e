"""Learned affinity in a pass: which methods accept which state, what is recorded, and its use as attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_models import small_unet, unet_inputs

from diffseg.affinity.affinity import Affinity, as_attention, check_state, record_affinity
from diffseg.affinity.state import AffinityError, AffinityState
from diffseg.attention.recorder import AttentionRecorder

HEADS = 40
"""Heads of the small model at 8 x 8 tokens."""


@pytest.fixture
def heads_state(make_state: Callable[..., AffinityState]) -> AffinityState:
    return make_state("heads", {"8x8": HEADS}, {"weight": torch.randn(HEADS) / 20, "bias": torch.tensor([-0.5])})


def test_dense_affinity_becomes_attention_whose_rows_sum_to_1() -> None:
    affinity = torch.rand(2, 64, 64)
    affinity = (affinity + affinity.transpose(1, 2)) / 2
    attention = as_attention(affinity, (8, 8), (16, 16))
    assert attention.shape == (2, 256, 256)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 256))
    assert torch.equal(attention[:, 0], attention[:, 17]), "queries of a coarse position are repeated"


def test_a_pass_inside_the_block_records_the_affinity(heads_state: AffinityState) -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1", batch=3)
    with record_affinity(heads_state, unet) as recorded:
        AttentionRecorder(unet).self_attention(inputs.pop("sample"), **inputs)
    affinity = recorded()
    assert affinity is not None
    assert affinity.dense is not None
    assert affinity.grid == (8, 8)
    assert affinity.dense.shape == (3, 64, 64)
    part = affinity.of_images(1, 2).dense
    assert part is not None
    assert torch.equal(part, affinity.dense[1:2])


def test_without_a_state_there_is_no_affinity() -> None:
    with record_affinity(None, small_unet("sd1")) as recorded:
        assert recorded() is None


def test_local_affinity_of_some_images() -> None:
    local = {(0, 1): torch.rand(3, 4, 3), (1, 0): torch.rand(3, 3, 4)}
    part = Affinity(grid=(4, 4), local=local).of_images(0, 2)
    assert part.dense is None
    assert part.local is not None
    assert all(torch.equal(part.local[offset], maps[:2]) for offset, maps in local.items())


def test_a_state_needs_a_stage_of_its_kind_and_its_own_model(
    heads_state: AffinityState, make_state: Callable[..., AffinityState]
) -> None:
    sha256, features = heads_state.model_sha256, make_state("features", {"8x8": 4}, {})
    check_state(None, sha256, ("diffseg", "walk"))
    check_state(heads_state, sha256, ("affinity", "diffseg"))
    check_state(features, sha256, ("diffseg", "walk"))
    with pytest.raises(AffinityError, match="needs a file of `diffseg fit heads`"):
        check_state(None, sha256, ("affinity", "diffseg"))
    with pytest.raises(AffinityError, match="affinity of heads, for stage affinity"):
        check_state(heads_state, sha256, ("diffseg", "walk"))
    with pytest.raises(AffinityError, match="affinity of features, for stage walk"):
        check_state(features, sha256, ("affinity", "diffseg", "walk"))
    with pytest.raises(AffinityError, match="learned from tiny"):
        check_state(heads_state, "cd" * 32, ("affinity", "diffseg"))
