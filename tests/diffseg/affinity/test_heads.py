"""Affinity from heads: planted heads are recovered, and a pass of a model gives the affinity of the formula."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from planted import permuted_columns, planted, voronoi
from small_models import small_unet, unet_inputs

from diffseg.affinity.heads import HeadAffinity, HeadReader, fit_heads, pair_attention
from diffseg.affinity.pairs import choose_pairs, roc_auc
from diffseg.affinity.state import AffinityError, AffinityState, hook_self_attention
from diffseg.attention.recorder import AttentionRecorder

SIDE, HEADS, INFORMATIVE = 16, 40, (4, 17, 30)


def head_maps(mask: np.ndarray, seed: int, *, shuffled: bool = False) -> torch.Tensor:
    """Return float32 [40, P, P]: three heads attend to their own region, the others to random positions."""
    generator, heads = np.random.default_rng(seed), []
    for head in range(HEADS):
        maps = planted(mask, leak=0.3, noise=1.0, seed=seed * HEADS + head)
        if head not in INFORMATIVE or shuffled:
            maps = permuted_columns(maps, int(generator.integers(2**31)))
        heads.append(maps)
    return torch.from_numpy(np.stack(heads)).float()


def pairs_of_images(seeds: range, *, shuffled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention of all heads between the pairs of some images, float32 [N, 40], and their classes, bool."""
    channels, same_segment = [], []
    for seed in seeds:
        mask = voronoi(SIDE, 4, seed)
        first, second, same = choose_pairs(mask, seed)
        maps = head_maps(mask, seed, shuffled=shuffled)
        channels.append(torch.stack([pair_attention(head, first, second) for head in maps], 1))
        same_segment.append(torch.from_numpy(same))
    return torch.cat(channels), torch.cat(same_segment)


def auc_of(fitted: dict[str, torch.Tensor], channels: torch.Tensor, same_segment: torch.Tensor) -> float:
    return roc_auc((channels @ fitted["weight"] + fitted["bias"]).numpy(), same_segment.numpy())


def test_informative_heads_get_the_weight_and_generalise_to_other_images() -> None:
    fitted = fit_heads(*pairs_of_images(range(4)))
    positive = fitted["weight"].clamp_min(0)
    assert positive[list(INFORMATIVE)].sum() >= 0.9 * positive.sum()
    assert auc_of(fitted, *pairs_of_images(range(100, 103))) > 0.95


def test_shuffled_heads_stay_at_chance_level() -> None:
    fitted = fit_heads(*pairs_of_images(range(4), shuffled=True))
    assert abs(auc_of(fitted, *pairs_of_images(range(100, 102), shuffled=True)) - 0.5) < 0.05


def test_fitting_again_gives_the_same_weights() -> None:
    channels, same_segment = pairs_of_images(range(2))
    first, second = fit_heads(channels, same_segment), fit_heads(channels, same_segment)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_heads_of_a_pass_average_to_the_recorded_attention(layout: str) -> None:
    torch.manual_seed(0)
    unet, inputs = small_unet(layout), unet_inputs(layout, batch=2)
    heads: list[torch.Tensor] = []
    with hook_self_attention(unet, HeadReader(64, lambda _, maps: heads.append(maps.clone()))):
        recorded = AttentionRecorder(unet).self_attention(inputs.pop("sample"), **inputs)
    maps, layers = recorded.maps[8, 8], recorded.layers[8, 8]
    assert len(heads) % layers == 0
    torch.testing.assert_close(torch.stack(heads).mean(dim=0), maps)


def test_the_affinity_of_a_pass_is_that_of_the_formula(make_state: Callable[..., AffinityState]) -> None:
    torch.manual_seed(1)
    unet, heads = small_unet("sd1"), []
    inputs = unet_inputs("sd1", batch=2)
    sample = inputs.pop("sample")
    with hook_self_attention(unet, HeadReader(64, lambda _, maps: heads.append(maps.clone()))):
        AttentionRecorder(unet).self_attention(sample, **inputs)
    weight, bias = torch.randn(len(heads)) / 20, torch.tensor([-0.5])
    recorder = HeadAffinity(make_state("heads", {"8x8": len(heads)}, {"weight": weight, "bias": bias}))
    with hook_self_attention(unet, recorder):
        AttentionRecorder(unet).self_attention(sample, **inputs)
    stack = torch.stack(heads, dim=-1) * 64 / 2
    expected = torch.sigmoid((stack + stack.transpose(1, 2)) @ weight + bias)
    affinity = recorder.affinity()
    torch.testing.assert_close(affinity, expected)
    torch.testing.assert_close(affinity, affinity.transpose(1, 2), rtol=1e-6, atol=0)
    assert affinity.min() > 0
    assert affinity.max() < 1


def test_a_pass_with_another_number_of_heads_is_refused(make_state: Callable[..., AffinityState]) -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1")
    recorder = HeadAffinity(make_state("heads", {"8x8": 20}, {"weight": torch.zeros(20), "bias": torch.zeros(1)}))
    with hook_self_attention(unet, recorder):
        AttentionRecorder(unet).self_attention(inputs.pop("sample"), **inputs)
    with pytest.raises(AffinityError, match="is of 20 heads at 8 x 8 tokens; this pass had 40"):
        recorder.affinity()


def test_a_state_of_features_is_refused(make_state: Callable[..., AffinityState]) -> None:
    with pytest.raises(AffinityError, match="expected an affinity of heads"):
        HeadAffinity(make_state("features", {"8x8": 2}, {}))
