"""Checkpoints in published layouts: what is loaded, what is not kept in memory, and half precision."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from small_checkpoints import TEXT, UNET, VAE, change_json, change_weights, write_json

import diffseg.model.text_encoders
from diffseg.attention.layers import self_attention_layers
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.layout import CheckpointError, load_part

Copy = Callable[[str], Path]


@pytest.mark.parametrize(
    ("layout", "resolution", "layers"), [("sd1", 128, 16), ("sd2-768", 768, 16), ("sdxl", 128, 28)]
)
def test_the_parts_of_a_checkpoint(layout: str, resolution: int, layers: int, checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints[layout])
    assert checkpoint.resolution == resolution
    assert len(self_attention_layers(checkpoint.unet)) == layers
    assert (checkpoint.tau, checkpoint.timestep) == ((1.1, 1.1, 1.1), 300)
    assert checkpoint.name == str(checkpoints[layout])
    saved = load_file(checkpoints[layout] / UNET)
    assert all(torch.equal(saved[name], value) for name, value in checkpoint.unet.state_dict().items())
    assert not any(p.requires_grad for p in [*checkpoint.unet.parameters(), *checkpoint.vae.parameters()])


def test_decoder_and_text_encoders_are_not_kept_in_memory(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = []

    def load_and_watch(*arguments: Any, **options: Any) -> Any:
        model = load_part(*arguments, **options)
        encoders.append(weakref.ref(model))
        return model

    monkeypatch.setattr(diffseg.model.text_encoders, "load_part", load_and_watch)
    checkpoint = load_checkpoint(checkpoints["sdxl"])
    gc.collect()
    assert [encoder() for encoder in encoders] == [None, None]
    assert {name.split(".")[0] for name, _ in checkpoint.vae.named_parameters()} == {"encoder", "quant_conv"}


def test_tiny_autoencoders_are_loaded_too(copy: Copy) -> None:
    folder = copy("textless")
    shutil.rmtree(folder / "vae")
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    vae.save_pretrained(folder / "vae")
    change_json(folder / "vae" / "config.json", block_out_channels=None)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latents
    torch.testing.assert_close(Backbone(load_checkpoint(folder)).latents(pixels), expected)


def test_attention_blocks_of_the_vae_may_have_their_old_names(copy: Copy) -> None:
    """SD 1.x was published before diffusers renamed these weights."""
    folder = copy("sd1")
    expected = load_checkpoint(folder).vae.state_dict()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for key in [key for key in weights if "mid_block.attentions" in key]:
            for new, old in names.items():
                if f".{new}." in key:
                    weights[key.replace(new, old)] = weights.pop(key)

    change_weights(folder / VAE, rename)
    assert any("query" in key for key in load_file(folder / VAE))
    weights = load_checkpoint(folder).vae.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in weights.items())


def test_settings_come_from_the_checkpoint(copy: Copy) -> None:
    folder = copy("sd1")
    write_json(folder / "diffseg.json", {"tau": [0.5, 0.6], "timestep": 50, "resolution": 192})
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.tau, checkpoint.timestep, checkpoint.resolution) == ((0.5, 0.6), 50, 192)


def test_files_in_half_precision_are_loaded(copy: Copy) -> None:
    folder = copy("sd1")
    full = load_checkpoint(folder)
    for name in (UNET, VAE, TEXT):
        halves = {key: v.half() if v.is_floating_point() else v for key, v in load_file(folder / name).items()}
        save_file(halves, (folder / name).with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        (folder / name).unlink()
    half = load_checkpoint(folder)
    assert half.unet.dtype == torch.float32
    torch.testing.assert_close(half.context, full.context, rtol=0, atol=0.02)
    rounded = full.unet.conv_in.weight.half().float()
    assert torch.equal(half.unet.conv_in.weight, rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["sd1", "sdxl-prompt"])
def test_half_precision_is_safe_from_overflow(layout: str, dtype: torch.dtype, copy: Copy) -> None:
    folder = copy(layout)

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        for key, weight in weights.items():
            if "attn1.to_q" in key or "attn1.to_k" in key:
                weight.mul_(60)

    change_weights(folder / UNET, enlarge)
    checkpoint = load_checkpoint(folder, dtype=dtype)
    assert checkpoint.unet.dtype == checkpoint.context.dtype == dtype
    assert checkpoint.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    largest = []

    def products(layer: Any, args: tuple) -> None:
        queries, keys = layer.to_q(args[0]).float(), layer.to_k(args[0]).float()
        queries, keys = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (queries, keys))
        largest.append((queries @ keys.transpose(-1, -2)).abs().max())

    for layer in self_attention_layers(checkpoint.unet):
        layer.register_forward_pre_hook(products)
    attention = Backbone(checkpoint).self_attention(torch.rand(1, 3, 128, 128) * 2 - 1, 300)
    assert max(largest) > torch.finfo(torch.float16).max, (
        "the product must overflow in float16 for this test to mean anything"
    )
    for maps in attention.maps.values():
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:2]))


def test_a_decoder_is_not_needed(copy: Copy) -> None:
    folder = copy("sd1")
    change_weights(
        folder / VAE, lambda weights: [weights.pop(key) for key in [*weights] if key.startswith(("decoder", "post"))]
    )
    assert Backbone(load_checkpoint(folder)).latents(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("inside", ["", "vae"])
def test_another_autoencoder_replaces_the_models_own(copy: Copy, tmp_path: Path, inside: str) -> None:
    folder, other = copy("sd1"), tmp_path / "small"
    small = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
    small.save_pretrained(other / inside)
    original, replaced = load_checkpoint(folder), load_checkpoint(folder, vae=other)
    pixels = torch.rand(1, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        expected = small.encode(pixels).latents
    torch.testing.assert_close(Backbone(replaced).latents(pixels), expected)
    assert replaced.sha256 != original.sha256
    change_weights(other / inside / "diffusion_pytorch_model.safetensors", lambda w: next(iter(w.values())).add_(1))
    assert load_checkpoint(folder, vae=other).sha256 != replaced.sha256


def test_an_autoencoder_that_does_not_fit_is_refused(copy: Copy, tmp_path: Path) -> None:
    folder = copy("sd1")
    with pytest.raises(CheckpointError, match="is a UNet2DConditionModel; looked for AutoencoderKL or AutoencoderTiny"):
        load_checkpoint(folder, vae=folder / "unet")
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"wide/config.json: latent_channels is 16; expected 4"):
        load_checkpoint(folder, vae=tmp_path / "wide")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_checkpoint(folder, vae=tmp_path / "nowhere")
