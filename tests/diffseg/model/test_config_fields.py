"""Configurations of models: each field is decided on, what is supported works, and hostile values are refused early."""

from __future__ import annotations

import inspect
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_checkpoints import TEXT, change_json, write_json
from small_clip import write_clip
from small_models import UNETS, small_unet, small_vae, unet_inputs

from diffseg.attention.recorder import AttentionRecorder
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint, load_checkpoint
from diffseg.model.clip import load_clip
from diffseg.model.config_fields import (
    CLIP_FIELDS,
    DIFFSEG_FIELDS,
    INDEX_FIELDS,
    TEXT_FIELDS,
    TINY_VAE_FIELDS,
    UNET_FIELDS,
    VAE_FIELDS,
    VISION_FIELDS,
    check_unet,
    check_vae,
)
from diffseg.model.config_rules import Rules
from diffseg.model.layout import CheckpointError, read_json

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


HUGE = (
    10**7,
    10**30,
    -1,
    0,
    1.5,
    float("inf"),
    float("nan"),
    True,
    "3",
    None,
    [],
    [10**7] * 4,
    [[[]]],
    {"a": 1},
    [2] * 10**4,
)
FILES: dict[str, Rules] = {
    "unet/config.json": UNET_FIELDS,
    "vae/config.json": VAE_FIELDS,
    "text_encoder/config.json": TEXT_FIELDS,
    "model_index.json": INDEX_FIELDS,
    "diffseg.json": DIFFSEG_FIELDS,
}
SECONDS = 30
"""Limit for one hostile file. It takes some tenths of a second, but tests run on busy machines."""

hostile_values = st.sampled_from(HUGE) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def hostile_folder(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(checkpoints["sd1"], tmp_path_factory.mktemp("hostile") / "sd1"))
    write_json(folder / "diffseg.json", {})
    return folder


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_configuration_loads_or_is_refused(data: st.DataObject, hostile_folder: Path) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    keys = st.sampled_from([*sorted(FILES[name]), "_class_name", "architectures", "dtype", "torch_dtype"])
    changes = data.draw(st.dictionaries(keys, hostile_values, min_size=1, max_size=3))
    path = hostile_folder / name
    before, message, started = path.read_text(), "", time.monotonic()
    try:
        change_json(path, **changes)
        assert isinstance(load_checkpoint(hostile_folder), Checkpoint)
    except CheckpointError as error:
        message = str(error)
    finally:
        path.write_text(before)
    assert len(message) < 2000
    assert time.monotonic() - started < SECONDS


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_whatever_a_unet_has_that_is_accepted_is_built_soon(data: st.DataObject) -> None:
    depth = st.sampled_from((1, 3, 24))
    config = {
        **json.loads(json.dumps(UNETS["sd1"])),
        "sample_size": 64,
        "in_channels": 4,
        "block_out_channels": [data.draw(st.sampled_from((32, 4096)))] * 4,
        "layers_per_block": data.draw(st.sampled_from((1, 8))),
        "transformer_layers_per_block": data.draw(depth | st.lists(depth, min_size=4, max_size=4)),
        "norm_num_groups": data.draw(st.sampled_from((8, 32, 7))),
    }
    started = time.monotonic()
    try:
        check_unet(Path("config.json"), config)
        with init_empty_weights():
            UNet2DConditionModel(**config)
    except ValueError:
        pass
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": 10**7}, r"layers_per_block is 10000000; expected .* from 1 to 8$"),
        (
            "unet/config.json",
            {"block_out_channels": [32, 64, 64, 10**9]},
            r"block_out_channels is .*10+\]; .* to 4096$",
        ),
        (
            "unet/config.json",
            {"block_out_channels": [8] * 10**4},
            r"block_out_channels is \[8, .*…; expected a list of",
        ),
        ("unet/config.json", {"cross_attention_dim": 10**9}, r"cross_attention_dim is 10+; .* from 1 to 8192$"),
        (
            "unet/config.json",
            {"layers_per_block": 8, "transformer_layers_per_block": 24},
            r"layers_per_block is 24; expected so few .* 512 in",
        ),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            r"addition_time_embed_dim is null; expected an integ",
        ),
        ("vae/config.json", {"layers_per_block": 10**7}, r"layers_per_block is 10000000; expected .* from 1 to 8$"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**7}, r"num_hidden_layers is 10000000; .* from 1 to 128$"),
        (
            "text_encoder/config.json",
            {"_attn_implementation": "kernels-community/x"},
            r"_attn_implementation is \"kern",
        ),
        (
            "text_encoder/config.json",
            {"hidden_size": 33},
            r"text_encoder of .*: no model can be built from config.json",
        ),
        ("model_index.json", {"text_encoder": "CLIPTextModel"}, r"text_encoder is \"CLIPTextModel\"; expected a list"),
        (
            "diffseg.json",
            {"resolution": 10**9},
            r"diffseg.json: resolution is 10+; expected an integer from 8 to 4096$",
        ),
        ("diffseg.json", {"tau": "much"}, r"diffseg.json: tau is \"much\"; expected a list of 1 to 100 numbers"),
        ("diffseg.json", {"method": ["rm"]}, r"diffseg.json: method is \[\"rm\"\]; expected a list of .* diffseg or"),
    ],
)
def test_bounds_are_named_with_file_key_and_value(name: str, changes: dict[str, Any], message: str, copy: Copy) -> None:
    folder = copy("sd1")
    write_json(folder / "diffseg.json", {})
    change_json(folder / name, **changes)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    "content", ["[" * 10**5, "[1, 2]", '{"a": ' * 10**4, "9" * 10**4, " " * 2**20 + "{}", "\0", ""]
)
def test_a_file_that_is_no_small_object_is_refused(content: str, copy: Copy) -> None:
    folder = copy("sd1")
    for name in FILES:
        before = (folder / name).read_text() if (folder / name).exists() else "{}"
        (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"{name}: (cannot be read as JSON|holds a|has \d+ bytes)"):
            load_checkpoint(folder)
        (folder / name).write_text(before)


def test_weights_that_no_file_holds_are_not_allocated(copy: Copy) -> None:
    folder = copy("sd1")
    save_file({"text_model.final_layer_norm.bias": torch.zeros(1)}, folder / TEXT, metadata={"format": "pt"})
    change_json(folder / "text_encoder" / "config.json", hidden_size=8192, num_hidden_layers=128)
    with pytest.raises(
        CheckpointError, match=r"config.json: describes \d{11} weights, but the files .* have \d+ bytes"
    ):
        load_checkpoint(folder)


def test_a_clip_has_bounds_too(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    before = read_json(folder / "config.json")
    for key, changes, message in (
        ("text_config", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000"),
        ("vision_config", {"hidden_size": 10**9}, "hidden_size is 10"),
        ("vision_config", {"num_hidden_layers": 128}, "describes .* weights, but"),
        ("vision_config_dict", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000"),
    ):
        write_json(folder / "config.json", before | {key: before.get(key, {}) | changes})
        with pytest.raises(CheckpointError, match=message):
            load_clip(folder)


@settings(deadline=None, max_examples=40)
@given(
    key=st.sampled_from(sorted({*CLIP_FIELDS, *VISION_FIELDS})),
    value=hostile_values,
    rules=st.sampled_from((UNET_FIELDS, VAE_FIELDS, TINY_VAE_FIELDS, TEXT_FIELDS, VISION_FIELDS, CLIP_FIELDS)),
)
def test_a_rule_never_raises(key: str, value: object, rules: Rules) -> None:
    for rule in rules.values():
        assert rule.accepts(value) in (True, False)


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
