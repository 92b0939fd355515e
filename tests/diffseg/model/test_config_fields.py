"""Fields of models' configurations: each is decided on, and what is supported works."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from small_checkpoints import change_json
from small_models import small_unet, small_vae, unet_inputs

from diffseg.attention.recorder import AttentionRecorder
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.config_fields import TINY_VAE_FIELDS, UNET_FIELDS, VAE_FIELDS, check_unet, check_vae
from diffseg.model.config_rules import Rules
from diffseg.model.layout import CheckpointError

Copy = Callable[[str], Path]


@pytest.mark.parametrize(
    ("rules", "model_class"),
    [(UNET_FIELDS, UNet2DConditionModel), (VAE_FIELDS, AutoencoderKL), (TINY_VAE_FIELDS, AutoencoderTiny)],
)
def test_each_field_of_the_installed_diffusers_is_decided_on(rules: Rules, model_class: Any) -> None:
    parameters = set(inspect.signature(model_class.__init__).parameters) - {"self"}
    assert set(rules) == parameters
    assert {rule.verdict for rule in rules.values()} == {"supported", "irrelevant", "refused"}


REFUSED = {
    "only_cross_attention": [True, [False, True, False, False]],
    "encoder_hid_dim": [64],
    "encoder_hid_dim_type": ["text_proj"],
    "num_attention_heads": [8],
    "dual_cross_attention": [True],
    "class_embed_type": ["projection", "timestep", "simple_projection"],
    "num_class_embeds": [1000],
    "attention_type": ["gated"],
    "class_embeddings_concat": [True],
}


def test_refused_fields_are_refused_when_the_model_is_loaded(copy: Copy) -> None:
    folder = copy("sd1")
    path = folder / "unet" / "config.json"
    before = path.read_text()
    assert set(REFUSED) == {key for key, rule in UNET_FIELDS.items() if rule.verdict == "refused"}
    for key, values in REFUSED.items():
        for value in values:
            path.write_text(json.dumps(json.loads(before) | {key: value}))
            with pytest.raises(CheckpointError) as refusal:
                load_checkpoint(folder)
            assert str(refusal.value).startswith(f"{path}: {key} is {json.dumps(value)}; expected ")


def test_a_unet_that_is_conditioned_on_images_is_refused(copy: Copy) -> None:
    """The unclip variants of SD 2.1 load without an error, and fail in each pass."""
    folder = copy("sd1")
    shutil.rmtree(folder / "unet")
    unet = small_unet("sd1", class_embed_type="projection", projection_class_embeddings_input_dim=64)
    unet.save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match=r"unet/config.json: class_embed_type is \"projection\"; expected null: "):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_out_channels", [8, 8, 8]),
        ("down_block_types", ["DownEncoderBlock2D"] * 5),
        ("shift_factor", 0.1),
        ("latents_mean", [1.0, 2.0, 3.0]),
        ("latents_mean", [1.0, 2.0, 3.0, 4.0]),
        ("latents_std", [1.0, 2.0, 0.0, 4.0]),
        ("scaling_factor", float("nan")),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
    ],
)
def test_an_autoencoder_with_other_latents_is_refused(key: str, value: Any, copy: Copy) -> None:
    folder = copy("sd1")
    change_json(folder / "vae" / "config.json", **{key: value})
    with pytest.raises(
        CheckpointError, match=r"vae/config.json: (block_out_channels|latents_|shift_|scaling|down|quan)"
    ):
        load_checkpoint(folder)


SUPPORTED: list[dict[str, Any]] = [
    {"center_input_sample": True},
    {"flip_sin_to_cos": False, "freq_shift": 1},
    {"mid_block_type": "UNetMidBlock2D"},
    {"mid_block_type": None},
    {"mid_block_scale_factor": 1.5},
    {"downsample_padding": 0},
    {"act_fn": "gelu"},
    {"transformer_layers_per_block": 2},
    {
        "transformer_layers_per_block": [1, [2, 1], 1, 1],
        "reverse_transformer_layers_per_block": [1, [1, 2, 1], 1, 1],
    },
    {"layers_per_block": [1, 2, 1, 1]},
    {"upcast_attention": True},
    {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.4},
    {"time_embedding_dim": 64, "time_embedding_act_fn": "silu", "timestep_post_act": "mish"},
    {"time_cond_proj_dim": 16},
    {"conv_in_kernel": 5, "conv_out_kernel": 1},
    {"mid_block_only_cross_attention": True, "cross_attention_norm": "layer_norm", "dropout": 0.5},
    {"addition_embed_type_num_heads": 8, "out_channels": 8},
]


@pytest.mark.parametrize("changes", SUPPORTED, ids=lambda changes: ",".join(changes))
def test_recording_leaves_the_output_unchanged_whatever_is_supported(changes: dict[str, Any]) -> None:
    unet, inputs = small_unet("sd1", **changes), unet_inputs("sd1")
    check_unet(Path("config.json"), json.loads(unet.to_json_string()))
    with torch.no_grad():
        expected = unet(**inputs).sample
    attention, output = AttentionRecorder(unet).with_output(inputs["sample"], 300, inputs["encoder_hidden_states"])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(maps).all() for maps in attention.maps.values())


IRRELEVANT_UNET = {"out_channels": 8, "dropout": 0.5, "conv_out_kernel": 1, "addition_embed_type_num_heads": 8}
IRRELEVANT_VAE = {"out_channels": 4, "sample_size": 64, "force_upcast": False, "use_post_quant_conv": False}


def test_irrelevant_fields_change_nothing_that_is_read(copy: Copy) -> None:
    folder = copy("textless")
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = Backbone(load_checkpoint(folder)).self_attention(pixels, 300)
    for part, model_class, changes in (
        ("unet", UNet2DConditionModel, IRRELEVANT_UNET),
        ("vae", AutoencoderKL, IRRELEVANT_VAE),
    ):
        model = model_class.from_pretrained(folder, subfolder=part)
        changed = model_class.from_config({**model.config, **changes})
        kept = {
            name: w for name, w in model.state_dict().items() if changed.state_dict().get(name, w[:0]).shape == w.shape
        }
        changed.load_state_dict(kept, strict=False)
        changed.save_pretrained(folder / part)
    maps = Backbone(load_checkpoint(folder)).self_attention(pixels, 300).maps
    assert all(torch.equal(maps[grid], expected.maps[grid]) for grid in expected.maps)


def test_latents_with_a_mean_and_a_deviation_are_those_of_diffusers(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("sdxl")
    statistics = {"latents_mean": [-1.6, 1.1, 3.2, -0.8], "latents_std": [8.4, 6.0, 5.2, 5.4], "scaling_factor": 0.5}
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    plain = Backbone(load_checkpoint(folder)).latents(pixels)
    change_json(folder / "vae" / "config.json", **statistics)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    posterior = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
    monkeypatch.setattr(f"{posterior}.sample", lambda self, generator=None: self.mode())
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=vae,
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")),
        add_watermarker=False,
    )
    expected = pipeline.prepare_latents(pixels, None, 2, 1, torch.float32, "cpu", add_noise=False)
    actual = Backbone(load_checkpoint(folder)).latents(pixels)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)  # weights are channels-last here
    assert not torch.allclose(actual, plain)


def test_published_forms_of_off_are_accepted() -> None:
    """Published files have null or false in the place of each other."""
    unet = small_unet("sdxl", upcast_attention=None, dual_cross_attention=False, only_cross_attention=False)
    check_unet(Path("config.json"), json.loads(unet.to_json_string()) | {"decay": 0.9999, "_name_or_path": "x"})
    ssd_1b = {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        "mid_block_type": None,
    }
    check_unet(Path("config.json"), json.loads(small_unet("sdxl", **ssd_1b).to_json_string()))
    check_vae(Path("config.json"), json.loads(small_vae(latents_mean=None).to_json_string()))
