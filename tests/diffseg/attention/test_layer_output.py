"""The output of one self-attention layer is recorded in the pass that records attention, and leaves it unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_unet

from diffseg import Segmenter
from diffseg.attention.layer_output import feature_layer, record_layer_output
from diffseg.images.canvas import ModelInput
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint

BLOCK = "transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("sd1", f"down_blocks.2.attentions.1.{BLOCK}"),
        ("sd2", f"down_blocks.2.attentions.1.{BLOCK}"),
        ("sdxl", "down_blocks.2.attentions.1.transformer_blocks.2.attn1"),
    ],
)
def test_the_layer_is_the_last_one_of_the_down_blocks(layout: str, name: str) -> None:
    assert feature_layer(small_unet(layout)).name == name


def test_a_unet_without_self_attention_on_the_way_down_is_refused() -> None:
    with pytest.raises(ValueError, match="the down blocks of this UNet have no self-attention"):
        feature_layer(small_unet("sd1", down_block_types=("DownBlock2D",) * 4))


def test_the_output_is_that_of_the_layer_on_its_grid(checkpoints: dict[str, Path]) -> None:
    backbone = Backbone(load_checkpoint(checkpoints["sd1"]))
    pixels = torch.rand(2, 3, 128, 64) * 2 - 1
    expected = backbone.self_attention(pixels, 300)
    layer, inputs = feature_layer(backbone.checkpoint.unet), list[torch.Tensor]()
    layer.module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with record_layer_output(backbone.checkpoint.unet, pixels) as read:
        attention = backbone.self_attention(pixels, 300)
    assert read().grid == (4, 2)
    assert len(layer.module._forward_hooks) == 0
    torch.testing.assert_close(read().maps.mT, layer.module(inputs[0]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(attention.maps[grid], expected.maps[grid]) for grid in expected.maps)


def test_the_segmenter_records_it_only_where_cuts_read_it() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)

    def prepared(segmenter: Segmenter) -> list[ModelInput]:
        return [segmenter.prepare(image), segmenter.prepare(image[::-1].copy())]

    settings: dict[str, Any] = {"method": "ncut", "resolution": 64, "flip": True}
    of_features = Segmenter.from_pretrained("tiny", batch_size=3, ncut_on="features", **settings)
    signals = of_features.attention_of(prepared(of_features))
    assert signals.layer_output is not None
    assert signals.layer_output.grid == (2, 2)
    assert signals.layer_output.maps.shape == (2, 80, 4)
    of_attention = Segmenter.from_pretrained("tiny", batch_size=2, **settings)
    assert of_attention.attention_of(prepared(of_attention)).layer_output is None
    with pytest.raises(ValueError, match="only attention has steps"):
        Segmenter.from_pretrained("tiny", ncut_on="features", ncut_steps=2)
