"""The loss of a batch does not depend on the number of workers that share it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.training.recipes.objective import objective
from pipeline.training.recipes.settings import IGNORE_INDEX, Target

IMAGES = 6


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("target", ["segments", "classes"])
def test_the_mean_loss_of_workers_is_that_of_one_worker_with_all_images(
    target: Target, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some images have no background, and pixels are ignored, so workers have different numbers of pixels."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (IMAGES, 32, 32), generator=generator)
    masks[:2] = masks[:2].clamp_min(1)
    masks[1:4, :, 10:] = IGNORE_INDEX
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 2, stride=2)

    @torch.no_grad()
    def loss(part: slice, rank: int) -> float:
        batch = {"image": images[part], "mask": masks[part]}
        return float(objective(network, batch, target, device="cpu", seed=(5, 7, rank))["loss"])

    whole = loss(slice(None), 0)
    pixels = torch.stack([(masks == 0).sum(), (masks > 0).sum()])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: count)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda own: own.copy_(pixels))
    losses, size = [], IMAGES // count
    for rank in range(count):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        losses.append(loss(slice(rank * size, (rank + 1) * size), rank))
    assert sum(losses) / count == pytest.approx(whole, abs=1e-6)
    assert len(set(losses)) == count
