"""MaskCLIP's denoising and smoothing: closed forms, fixed points, and what they must not change."""

from __future__ import annotations

import pytest
import torch
from planted import permuted_columns, planted, voronoi

from diffseg.method.clip_naming import denoise_names, smooth_scores
from diffseg.settings import settings_of

SIDE = 12


def noisy_scores(seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the region of each position, noisy attention within it, and noisy scores that favour it."""
    mask = voronoi(SIDE, 4, seed)
    attention = torch.from_numpy(planted(mask, leak=0.1, noise=0.5, seed=seed)).float()[None]
    regions = torch.from_numpy(mask)
    logits = torch.nn.functional.one_hot(regions, 4).permute(2, 0, 1).float()
    logits = logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    return regions, attention, logits.softmax(dim=0)[None]


def accuracy(maps: torch.Tensor, regions: torch.Tensor) -> float:
    return (maps[0].argmax(dim=0) == regions).float().mean().item()


def test_a_name_that_is_unlikely_everywhere_is_removed() -> None:
    maps = torch.tensor([[0.30, 0.60], [0.68, 0.38], [0.02, 0.02]]).view(1, 3, 1, 2)
    denoised = denoise_names(maps, 0.5)
    assert torch.equal(denoised[:, :2], maps[:, :2])
    assert not denoised[:, 2].any()
    assert torch.equal(denoise_names(maps, 0.0), maps)
    assert torch.equal(denoise_names(maps, 0.9), maps), "an image that would lose all names keeps them"
    assert torch.equal(denoise_names(maps * 0.1, 0.5)[:, :2], maps[:, :2] * 0.1), (
        "the threshold applies to the share of the names"
    )


def test_each_image_is_denoised_separately() -> None:
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[1, 2] *= 0.01
    denoised = denoise_names(maps, 0.4)
    for image in range(2):
        assert torch.equal(denoised[image], denoise_names(maps[image : image + 1], 0.4)[0])
    assert denoised[0, 2].any()
    assert not denoised[1, 2].any()


def test_smoothing_is_a_mean_over_the_attended_positions() -> None:
    maps = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(1))
    attention /= attention.sum(dim=-1, keepdim=True)
    smoothed = smooth_scores(maps, attention, torch.tensor([True]), (3, 3))
    for position in range(9):
        expected = (attention[0, position] * maps[0].flatten(1)).sum(dim=1)
        torch.testing.assert_close(smoothed[0, :, position // 3, position % 3], expected)
    assert maps.amin() - 1e-6 <= smoothed.min() <= smoothed.max() <= maps.amax() + 1e-6
    itself = smooth_scores(maps, torch.eye(9)[None], torch.tensor([True]), (3, 3))
    torch.testing.assert_close(itself, maps)
    flat = smooth_scores(torch.full((1, 2, 5, 5), 0.25), attention, torch.tensor([True]), (3, 3))
    torch.testing.assert_close(flat, torch.full((1, 2, 3, 3), 0.25))


def test_non_finite_attention_gives_finite_scores() -> None:
    maps, attention = torch.rand(2, 2, 3, 3), torch.full((2, 9, 9), torch.nan)
    attention[1] = 1 / 9
    smoothed = smooth_scores(maps, attention, torch.tensor([False, True]), (3, 3))
    assert torch.isfinite(smoothed).all()
    torch.testing.assert_close(smoothed[1], maps[1].mean(dim=(1, 2), keepdim=True).expand(-1, 3, 3))


def test_smoothing_with_planted_attention_recovers_regions_from_noise_and_with_shuffled_attention_does_not() -> None:
    """On ten held-out seeds, accuracy rises from about half to nearly all; shuffled columns bring no gain."""
    before, after, shuffled = [], [], []
    for seed in range(100, 110):
        regions, attention, maps = noisy_scores(seed, noise=1.0)
        control = torch.from_numpy(permuted_columns(attention[0].numpy()))[None]
        finite = torch.tensor([True])
        before.append(accuracy(maps, regions))
        after.append(accuracy(smooth_scores(maps, attention, finite, (SIDE, SIDE)), regions))
        shuffled.append(accuracy(smooth_scores(maps, control, finite, (SIDE, SIDE)), regions))
    assert min(after) > 0.9
    assert sum(before) / 10 < 0.75
    assert sum(shuffled) / 10 < 0.6


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_denoise=1\.5: expected a share"):
        settings_of(clip_denoise=1.5)
