"""Every field of the configurations that a checkpoint has: which values are supported, irrelevant or refused.

Each table has the fields of one class of diffusers or transformers. A test compares the tables of UNet and autoencoders
with the signatures of the installed diffusers, so that a field that a new release adds is decided on here.

Bounds are several times the largest value in Stable Diffusion 1.x, 2.x and XL and in distilled variants of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from diffseg.model.config_rules import (
    Rule,
    Rules,
    boolean,
    check_config,
    integer,
    integers,
    number,
    off,
    one_of,
    refused,
    texts,
)
from diffseg.settings import StageName

ADDED_SDXL = "text_time"
"""The UNet's `addition_embed_type` in SDXL."""

TIME_IDS = 6
"""Numbers of SDXL's size conditioning: original size, crop corner and target size."""

BLOCKS, LAYERS, TRANSFORMERS, CHANNELS, WIDTH = 6, 8, 24, 4096, 8192
"""Most blocks of a network, layers of a block, transformers of a layer, channels, and features of a token."""

ALL_TRANSFORMERS = 512
"""Most transformers of a network, if every layer of every block had the largest depth: 150 in SDXL."""

VAE_BLOCKS = 4
"""Blocks of an autoencoder's encoder, each but one of which halves the sides: an eighth of the image in all."""

ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")

_Depth = Annotated[int, Field(ge=0, le=TRANSFORMERS)]
_Depths = Annotated[list[_Depth], Field(min_length=1, max_length=LAYERS + 1)]
_DEPTHS = f"an integer, or a list of 1 to {BLOCKS} integers or lists of integers, from 0 to {TRANSFORMERS}"

_QUANTIZED = {"quantization_config": off("quantised weights are not supported")}

UNET_FIELDS: Rules = {
    "sample_size": integer(1, 512),
    "in_channels": Rule("supported", Literal[4], "4, as in a text-to-image Stable Diffusion"),
    "out_channels": integer(1, 64, verdict="irrelevant"),
    "center_input_sample": boolean(),
    "flip_sin_to_cos": boolean(),
    "freq_shift": number(-16, 16),
    "down_block_types": texts("CrossAttnDownBlock2D", "DownBlock2D", items=BLOCKS),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": texts("CrossAttnUpBlock2D", "UpBlock2D", items=BLOCKS),
    "only_cross_attention": Rule(
        "refused",
        Literal[False, None] | Annotated[list[Literal[False]], Field(max_length=BLOCKS)],
        "false: DiffSeg reads self-attention",
    ),
    "block_out_channels": integers(1, CHANNELS, items=BLOCKS),
    "layers_per_block": integers(1, LAYERS, items=BLOCKS, scalar=True),
    "downsample_padding": integer(0, 1),
    "mid_block_scale_factor": number(1e-6, 1e6),
    "dropout": number(0, 1, verdict="irrelevant"),
    "act_fn": one_of(*ACTIVATIONS),
    "norm_num_groups": integer(1, CHANNELS),
    "norm_eps": number(1e-12, 1),
    "cross_attention_dim": integer(1, WIDTH),
    "transformer_layers_per_block": Rule(
        "supported", _Depth | Annotated[list[_Depth | _Depths], Field(min_length=1, max_length=BLOCKS)], _DEPTHS
    ),
    "reverse_transformer_layers_per_block": Rule(
        "supported",
        Annotated[list[_Depth | _Depths], Field(min_length=1, max_length=BLOCKS)] | None,
        f"{_DEPTHS}, or null",
    ),
    "encoder_hid_dim": off("the model is conditioned on more than CLIP's text"),
    "encoder_hid_dim_type": off("the model is conditioned on more than CLIP's text"),
    "attention_head_dim": integers(1, CHANNELS, items=BLOCKS, scalar=True),
    "num_attention_heads": off("diffusers reads the number of heads from attention_head_dim"),
    "dual_cross_attention": off("the blocks read two prompts", False),
    "use_linear_projection": boolean(),
    "class_embed_type": off("the model is conditioned on classes or images, which DiffSeg does not have"),
    "addition_embed_type": one_of(None, ADDED_SDXL),
    "addition_time_embed_dim": integer(1, CHANNELS, optional=True),
    "num_class_embeds": off("the model is conditioned on classes, which DiffSeg does not have"),
    "upcast_attention": boolean(),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "resnet_skip_time_act": boolean(),
    "resnet_out_scale_factor": number(1e-6, 1e6),
    "time_embedding_type": one_of("positional"),
    "time_embedding_dim": integer(1, 4 * CHANNELS, optional=True),
    "time_embedding_act_fn": one_of(*ACTIVATIONS, None),
    "timestep_post_act": one_of(*ACTIVATIONS, None),
    "time_cond_proj_dim": integer(4, CHANNELS, optional=True),
    "conv_in_kernel": Rule("supported", Literal[1, 3, 5, 7], "1, 3, 5 or 7"),
    "conv_out_kernel": Rule("irrelevant", Literal[1, 3, 5, 7], "1, 3, 5 or 7"),
    "projection_class_embeddings_input_dim": integer(1, 4 * WIDTH, optional=True),
    "attention_type": off("the blocks read boxes", "default"),
    "class_embeddings_concat": off("the model is conditioned on classes, which DiffSeg does not have", False),
    # These three belong to block types and embeddings that are refused.
    "mid_block_only_cross_attention": boolean(verdict="irrelevant"),
    "cross_attention_norm": one_of(None, "layer_norm", "group_norm", verdict="irrelevant"),
    "addition_embed_type_num_heads": integer(1, CHANNELS, verdict="irrelevant"),
}
"""The fields of UNet2DConditionModel."""

_FOUR = Annotated[
    list[Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]], Field(min_length=4, max_length=4)
]
_FOUR_POSITIVE = Annotated[
    list[Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]], Field(min_length=4, max_length=4)
]
_LATENTS = Rule("supported", Literal[4], "4, as the UNet reads")
_COLOURS = Rule("supported", Literal[3], "3")

VAE_FIELDS: Rules = {
    "in_channels": _COLOURS,
    "out_channels": integer(1, 64, verdict="irrelevant"),
    "down_block_types": texts("DownEncoderBlock2D", "AttnDownEncoderBlock2D", items=VAE_BLOCKS, shortest=VAE_BLOCKS),
    "up_block_types": texts("UpDecoderBlock2D", "AttnUpDecoderBlock2D", items=BLOCKS, verdict="irrelevant"),
    "block_out_channels": integers(1, CHANNELS, items=VAE_BLOCKS, shortest=VAE_BLOCKS),
    "layers_per_block": integer(1, LAYERS),
    "act_fn": one_of(*ACTIVATIONS),
    "latent_channels": _LATENTS,
    "norm_num_groups": integer(1, CHANNELS),
    "sample_size": integer(1, 65536, verdict="irrelevant"),
    "scaling_factor": number(1e-6, 1e6),
    "shift_factor": off("pipelines of Stable Diffusion do not shift latents", 0.0, 0),
    "latents_mean": Rule("supported", _FOUR | None, "4 numbers, or null"),
    "latents_std": Rule("supported", _FOUR_POSITIVE | None, "4 numbers above 0, or null"),
    "force_upcast": boolean(verdict="irrelevant"),
    "use_quant_conv": boolean(),
    "use_post_quant_conv": boolean(verdict="irrelevant"),
    "mid_block_add_attention": boolean(),
}
"""The fields of AutoencoderKL."""

TINY_VAE_FIELDS: Rules = {
    "in_channels": _COLOURS,
    "out_channels": integer(1, 16, verdict="irrelevant"),
    "encoder_block_out_channels": integers(1, CHANNELS, items=VAE_BLOCKS, shortest=VAE_BLOCKS),
    "decoder_block_out_channels": integers(1, CHANNELS, items=BLOCKS, verdict="irrelevant"),
    "act_fn": one_of(*ACTIVATIONS),
    "upsample_fn": one_of("nearest", "bilinear", "bicubic", verdict="irrelevant"),
    "latent_channels": _LATENTS,
    "upsampling_scaling_factor": integer(1, 8, verdict="irrelevant"),
    "num_encoder_blocks": integers(1, LAYERS, items=VAE_BLOCKS, shortest=VAE_BLOCKS),
    "num_decoder_blocks": integers(1, LAYERS, items=BLOCKS, verdict="irrelevant"),
    "latent_magnitude": number(1e-6, 1e6, verdict="irrelevant"),
    "latent_shift": number(-1e6, 1e6, verdict="irrelevant"),
    "force_upcast": boolean(verdict="irrelevant"),
    "scaling_factor": number(1e-6, 1e6),
    "shift_factor": off("pipelines of Stable Diffusion do not shift latents", 0.0, 0),
}
"""The fields of AutoencoderTiny."""

_TRANSFORMER_FIELDS: Rules = {
    "hidden_size": integer(1, WIDTH),
    "intermediate_size": integer(1, 4 * WIDTH),
    "projection_dim": integer(1, WIDTH, optional=True),
    "num_hidden_layers": integer(1, 128),
    "num_attention_heads": integer(1, 256),
    "hidden_act": one_of("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "layer_norm_eps": number(1e-12, 1),
    "attention_dropout": number(0, 1, verdict="irrelevant"),
    "_attn_implementation": off("a configuration cannot choose an implementation of attention"),
    "attn_implementation": off("a configuration cannot choose an implementation of attention"),
    **_QUANTIZED,
}
TEXT_FIELDS: Rules = {
    **_TRANSFORMER_FIELDS,
    "vocab_size": integer(1, 2**20),
    "max_position_embeddings": integer(3, 2048),
    "projection_size": integer(1, WIDTH, optional=True),
}
"""Fields of CLIPTextConfig and SiglipTextConfig with a bound. The other fields change nothing that is built."""

VISION_FIELDS: Rules = {
    **_TRANSFORMER_FIELDS,
    "num_channels": _COLOURS,
    "image_size": integer(1, 2048),
    "patch_size": integer(1, 256),
    "num_patches": integer(1, 2**16),
}
"""Fields of the vision configurations of CLIP, SigLIP and SigLIP 2 with a bound."""

_Config = dict[str, Any]
CLIP_FIELDS: Rules = {
    "projection_dim": integer(1, WIDTH, optional=True),
    "text_config": Rule("supported", _Config | None, "an object"),
    "vision_config": Rule("supported", _Config | None, "an object"),
    # Keys of early releases, whose values would replace those of text_config and vision_config.
    "text_config_dict": Rule("supported", _Config | None, "an object, or null"),
    "vision_config_dict": Rule("supported", _Config | None, "an object, or null"),
    "_attn_implementation": _TRANSFORMER_FIELDS["_attn_implementation"],
    "attn_implementation": _TRANSFORMER_FIELDS["attn_implementation"],
    **_QUANTIZED,
}
"""Fields of CLIPConfig that are read."""

_Component = Annotated[list[str | None], Field(min_length=2, max_length=2)]
_COMPONENT = Rule("supported", _Component, "a list of a library and a class, or of two nulls")
INDEX_FIELDS: Rules = {
    "text_encoder": _COMPONENT,
    "text_encoder_2": _COMPONENT,
    "scheduler": _COMPONENT,
    "force_zeros_for_empty_prompt": boolean(),
}
"""The keys of model_index.json that are read."""

DIFFSEG_FIELDS: Rules = {
    "tau": Rule(
        "supported",
        Annotated[
            list[Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]], Field(min_length=1, max_length=100)
        ],
        "a list of 1 to 100 numbers, 0 or more",
    ),
    "timestep": integer(0, 999),
    "resolution": integer(8, 4096),
    "method": texts(*get_args(StageName), items=len(get_args(StageName))),
}
"""The keys of diffseg.json that are read."""


def check_unet(path: Path, config: Mapping[str, Any]) -> None:
    """Check the configuration of a UNet. Raises CheckpointError, see `check_config`."""
    for key in ("sample_size", "in_channels"):  # diffusers' defaults are not those of any model
        if not UNET_FIELDS[key].accepts(config.get(key)):
            raise refused(path, key, config.get(key), UNET_FIELDS[key].expects)
    check_config(path, config, {**UNET_FIELDS, **_QUANTIZED})
    depths, layers = config.get("transformer_layers_per_block", 1), config.get("layers_per_block", 2)
    reverse = config.get("reverse_transformer_layers_per_block") or 0
    blocks = len(config.get("block_out_channels", ())) or BLOCKS
    if blocks * (2 * _largest(layers) + 1) * max(_largest(depths), _largest(reverse)) > ALL_TRANSFORMERS:
        expects = f"so few that blocks, layers and transformers of a layer make at most {ALL_TRANSFORMERS} in all"
        raise refused(path, "transformer_layers_per_block", depths, expects)
    if config.get("addition_embed_type") == ADDED_SDXL:
        for_time = config.get("addition_time_embed_dim")
        in_all = config.get("projection_class_embeddings_input_dim")
        if for_time is None:
            raise refused(path, "addition_time_embed_dim", for_time, f"an integer where {ADDED_SDXL} is added")
        if in_all is None or in_all <= TIME_IDS * for_time:
            expects = f"more than {TIME_IDS} times addition_time_embed_dim, {TIME_IDS * for_time}"
            raise refused(path, "projection_class_embeddings_input_dim", in_all, expects)


def _largest(value: Any) -> int:
    """Return the largest integer in a nested list, or the value itself."""
    return max(map(_largest, value)) if isinstance(value, list) else value


def check_vae(path: Path, config: Mapping[str, Any]) -> None:
    """Check the configuration of an autoencoder. Raises CheckpointError, see `check_config`."""
    tiny = config.get("_class_name") == "AutoencoderTiny"
    check_config(path, config, {**(TINY_VAE_FIELDS if tiny else VAE_FIELDS), **_QUANTIZED})
    if not tiny:
        for key in ("block_out_channels", "down_block_types"):
            if key not in config:  # diffusers' default is one block
                raise refused(path, key, None, VAE_FIELDS[key].expects)
        if (config.get("latents_mean") is None) != (config.get("latents_std") is None):
            raise refused(path, "latents_std", config.get("latents_std"), "4 numbers where latents_mean has 4, or null")


def check_clip(path: Path, config: Mapping[str, Any]) -> None:
    """Check the configuration of a CLIP with both encoders. Raises CheckpointError, see `check_config`."""
    check_config(path, config, CLIP_FIELDS)
    for key, rules in (("text_config", TEXT_FIELDS), ("vision_config", VISION_FIELDS)):
        for name in (key, f"{key}_dict"):
            check_config(path, config.get(name) or {}, rules)
