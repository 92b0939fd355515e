"""Layers are found in the order of a pass, and refused if they compute what the recorder does not."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from small_models import UNETS, small_unet, unet_inputs

from diffseg.attention.layers import NOT_COMPUTED, attention_layers, transformer_blocks
from diffseg.attention.recorder import AttentionRecorder

LAYER = "up_blocks.1.attentions.0.transformer_blocks.0"

COMPUTED = {
    *("query_dim", "cross_attention_dim", "heads", "dim_head", "bias", "scale_qk", "out_bias"),
    # Products and softmax are float32 in any case, and there is no dropout outside training.
    *("upcast_attention", "upcast_softmax", "dropout"),
}
"""Arguments of diffusers' Attention that the recorder computes."""

UNUSED = {
    # These have no effect unless a refused argument is given too.
    *("cross_attention_norm_num_groups", "added_proj_bias", "eps", "elementwise_affine", "out_context_dim"),
    *("_from_deprecated_attn_block", "processor", "context_pre_only", "out_dim", "only_cross_attention"),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kv_heads": ({"kv_heads": 2}, "kv_heads=2: expected 4"),
    "cross_attention_norm": ({"cross_attention_norm": "layer_norm"}, "norm_cross=LayerNorm"),
    "qk_norm": ({"qk_norm": "rms_norm"}, "norm_q=RMSNorm"),
    "added_kv_proj_dim": ({"added_kv_proj_dim": 8}, "add_k_proj=Linear"),
    "norm_num_groups": ({"norm_num_groups": 4}, "group_norm=GroupNorm"),
    "spatial_norm_dim": ({"spatial_norm_dim": 8}, "spatial_norm=SpatialNorm"),
    "rescale_output_factor": ({"rescale_output_factor": 2.0}, "rescale_output_factor=2.0: expected 1.0"),
    "residual_connection": ({"residual_connection": True}, "residual_connection=True: expected False"),
    "pre_only": ({"pre_only": True}, "pre_only=True: expected False"),
    "is_causal": ({"is_causal": True}, "is_causal=True: expected False"),
}
"""Arguments of diffusers' Attention that the recorder refuses: values, and what the message says."""


def test_each_argument_of_the_installed_diffusers_is_decided_on() -> None:
    parameters = set(inspect.signature(Attention.__init__).parameters) - {"self"}
    assert parameters == COMPUTED | UNUSED | set(REFUSED)
    assert not COMPUTED & set(REFUSED)


@pytest.mark.parametrize("which", ["attn1", "attn2"])
@pytest.mark.parametrize("argument", REFUSED)
def test_a_layer_that_computes_more_is_refused_by_its_name(argument: str, which: str) -> None:
    unet, (options, message) = small_unet("sd1"), REFUSED[argument]
    block = unet.get_submodule(LAYER)
    width = None if which == "attn1" else UNETS["sd1"]["cross_attention_dim"]
    setattr(block, which, Attention(64, width, heads=4, dim_head=16, **options))
    with pytest.raises(ValueError, match=r"^attention layer ") as refusal:
        AttentionRecorder(unet)
    assert str(refusal.value).startswith(f"attention layer {LAYER}.{which} has {message}")


def test_every_attribute_that_is_checked_is_one_of_diffusers_layers() -> None:
    layer = Attention(8, heads=1, dim_head=8)
    assert all(hasattr(layer, attribute) for attribute in NOT_COMPUTED)


@pytest.mark.parametrize("mask", ["attention_mask", "encoder_attention_mask"])
def test_a_pass_with_a_mask_is_refused(mask: str) -> None:
    inputs = unet_inputs("sd1")
    tokens = 256 if mask == "attention_mask" else inputs["encoder_hidden_states"].shape[1]
    recorder = AttentionRecorder(small_unet("sd1"))
    kind = "attn1" if mask == "attention_mask" else "attn2"
    with pytest.raises(ValueError, match=rf"^attention layer .*\.{kind} has an attention_mask: expected none"):
        recorder.attention(
            inputs["sample"],
            300,
            inputs["encoder_hidden_states"],
            columns=torch.zeros(1, 1, dtype=torch.int64),
            **{mask: torch.ones(1, tokens)},
        )


UNET_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"only_cross_attention": True}, ""),  # the middle block still has self-attention
    ({"attention_type": "gated"}, ""),
    ({"cross_attention_norm": "layer_norm"}, ""),
    ({"upcast_attention": True}, ""),
    ({"use_linear_projection": True}, ""),
    ({"attention_head_dim": (1, 2, 4, 8)}, ""),
    ({"mid_block_only_cross_attention": True}, ""),
    ({"mid_block_type": None}, ""),
    ({"transformer_layers_per_block": (1, 2, 1, 1)}, ""),
    ({"layers_per_block": 1}, ""),
    ({"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("AttnDownBlock2D",)}, ""),
    ({"up_block_types": ("AttnUpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}, ""),
    ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_norm": "group_norm"}, ""),
    ({"down_block_types": ("SimpleCrossAttnDownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4,
      "mid_block_type": None}, "no self-attention layers"),
]  # fmt: skip
"""Options of UNets that concern attention, and the refusal, or "" if the output must be unchanged.

dual_cross_attention is missing, because diffusers itself cannot run such a UNet; checkpoints with it are refused.
"""


@pytest.mark.parametrize(("options", "refusal"), UNET_OPTIONS, ids=str)
def test_every_kind_of_unet_is_recorded_with_an_unchanged_output_or_refused(
    options: dict[str, Any], refusal: str
) -> None:
    config = {"norm_num_groups": 8, "sample_size": 8, **UNETS["sd1"], **options}
    unet, inputs = UNet2DConditionModel(**config).eval(), unet_inputs("sd1", grid=(8, 16))
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            AttentionRecorder(unet)
        return
    with torch.no_grad():
        expected = unet(**inputs).sample
    latents, context = inputs["sample"], inputs["encoder_hidden_states"]
    _, output = AttentionRecorder(unet).with_output(latents, 300, context, record_cross=True)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("layout", UNETS)
def test_layers_are_listed_in_the_order_in_which_a_pass_runs_them(layout: str) -> None:
    unet, ran = small_unet(layout), []
    for layer in attention_layers(unet):
        layer.module.register_forward_hook(lambda *_, name=layer.name: ran.append(name))
        assert unet.get_submodule(layer.name) is layer.module
    with torch.no_grad():
        unet(**unet_inputs(layout))
    assert [layer.name for layer in attention_layers(unet)] == ran
    assert [f"{block.name}.attn1" for block in transformer_blocks(unet)] == ran[::2]
