"""Attention averaged with the attention of the mirrored image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from diffseg import Segmenter, SegmenterSettings
from diffseg.attention.maps import SelfAttention
from diffseg.model.backbone import no_step
from diffseg.signal_recorder import SignalRecorder
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, generate_scene


def test_mirrored_maps_are_mirrored_back_in_queries_and_keys() -> None:
    rows, columns = 2, 3
    maps, mirrored = (torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = maps.clone()
    for image in range(2):
        for query in range(6):
            for key in range(6):
                other_query, other_key = (p // columns * columns + columns - 1 - p % columns for p in (query, key))
                expected[image, query, key] += mirrored[image, other_query, other_key]
    attention = SelfAttention(maps={(rows, columns): maps}, layers={(rows, columns): 1})
    attention.average_with_mirrored(SelfAttention(maps={(rows, columns): mirrored}, layers=attention.layers))
    torch.testing.assert_close(attention.maps[rows, columns], expected / 2)


def test_a_mirrored_image_has_the_mirrored_attention(checkpoints: dict[str, Path]) -> None:
    segmenter = Segmenter.from_pretrained(checkpoints["sd1"], flip=True)
    image = generate_scene(VALIDATION_SEEDS[0], 128).image

    def record(recorder: SignalRecorder, image: np.ndarray) -> SelfAttention:
        pixels = segmenter.prepare(np.ascontiguousarray(image)).pixels.expand(2, -1, -1, -1)
        return recorder.run_pass(pixels, None, no_step).self_attention

    original, mirrored = (record(segmenter.recorder, picture) for picture in (image, image[:, ::-1]))
    plain = record(Segmenter(segmenter.backbone, SegmenterSettings()).recorder, image)
    for (rows, columns), maps in original.maps.items():
        restored = mirrored.maps[rows, columns].view(-1, rows, columns, rows, columns).flip(2, 4).view_as(maps)
        torch.testing.assert_close(maps, restored, rtol=1e-4, atol=1e-6)
        assert (maps - plain.maps[rows, columns]).abs().max() > 1e-4, "the model itself does not mirror"
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:2]))
