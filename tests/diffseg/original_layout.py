"""Checkpoints of reduced width in single files, in the original layout of Stable Diffusion, with random weights.

The names are written out here independently of diffusers' conversion, which the tests hold to them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import TEXT, UNET, VAE, write_checkpoint, write_text_encoder, write_tokenizer
from small_models import POOLED_WIDTH, SECOND_TEXT_WIDTH, small_unet

Weights = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(folder: Path, layout: str) -> Path:
    """Write a diffusers folder of the layout sd1, sd2 or sdxl, and the same weights in a single file, whose path is
    returned. diffusers recognises SD 2.x by the width of its text, and SDXL by the depth of its second encoder."""
    write_checkpoint(folder, layout)
    if layout == "sd2":
        shutil.rmtree(folder / "unet")
        shutil.rmtree(folder / "text_encoder")
        small_unet("sd2", cross_attention_dim=1024).save_pretrained(folder / "unet")
        write_text_encoder(folder / "text_encoder", 1024, activation="gelu", layers=1, intermediate=64)
    if layout == "sdxl":
        shutil.rmtree(folder / "text_encoder_2")
        write_text_encoder(
            folder / "text_encoder_2", SECOND_TEXT_WIDTH, projection=POOLED_WIDTH, activation="gelu", layers=10
        )
    weights = {f"model.diffusion_model.{name}": w for name, w in unet_weights(load_file(folder / UNET)).items()}
    weights |= {f"first_stage_model.{name}": w for name, w in vae_weights(load_file(folder / VAE)).items()}
    text = load_file(folder / TEXT)
    if layout == "sd1":
        weights |= {f"cond_stage_model.transformer.{name}": w for name, w in text.items()}
    elif layout == "sd2":
        weights |= {f"cond_stage_model.model.{name}": w for name, w in open_clip_weights(text).items()}
    else:
        weights |= {f"conditioner.embedders.0.transformer.{name}": w for name, w in text.items()}
        second = open_clip_weights(load_file(folder / "text_encoder_2" / "model.safetensors"))
        weights |= {f"conditioner.embedders.1.model.{name}": w for name, w in second.items()}
    path = folder.with_name(f"{folder.name}.safetensors")
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path


def unet_weights(weights: Weights) -> Weights:
    """Rename the weights of a UNet with two layers in each block."""
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("down_blocks."))
    with_attention = {int(name.split(".")[1]) for name in weights if re.match(r"up_blocks\.\d+\.attentions", name)}

    def rename(name: str) -> str:
        if name.startswith("mid_block."):
            _, kind, number, rest = name.split(".", 3)
            return f"middle_block.{2 * int(number) + (kind == 'attentions')}.{resnet(rest, kind)}"
        if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
            if kind == "downsamplers":
                return f"input_blocks.{3 * (block + 1)}.0.{rest.replace('conv', 'op')}"
            if kind == "upsamplers":
                return f"output_blocks.{3 * block + 2}.{1 + (block in with_attention)}.{rest}"
            number, position = 3 * block + layer + (side == "down"), int(kind == "attentions")
            return f"{'in' if side == 'down' else 'out'}put_blocks.{number}.{position}.{resnet(rest, kind)}"
        stem, suffix = name.rsplit(".", 1)
        return f"{OUTSIDE_BLOCKS[stem]}.{suffix}"

    def resnet(rest: str, kind: str) -> str:
        stem, suffix = rest.rsplit(".", 1)
        return f"{RESNET[stem]}.{suffix}" if kind == "resnets" else rest

    assert blocks in (3, 4)
    return {rename(name): weight for name, weight in weights.items()}


def vae_weights(weights: Weights) -> Weights:
    """Rename the weights of an autoencoder of four blocks; linear layers of its attention become convolutions."""
    renamed = {}
    for name, weight in weights.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{3 - int(found[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{3 - int(found[1])}.upsample.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0." in new:
            new = new.replace("mid_block.attentions.0.", "mid.attn_1.")
            for ours, original in VAE_ATTENTION.items():
                new = new.replace(f".{ours}.", f".{original}.")
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        renamed[new] = weight
    return renamed


def open_clip_weights(weights: Weights) -> Weights:
    """Rename the weights of a text encoder as open_clip has them, with queries, keys and values in one tensor."""
    renamed = {}
    for name, weight in weights.items():
        if "position_ids" in name or ".q_proj." in name or ".k_proj." in name:
            continue
        if ".v_proj." in name:
            weight = torch.cat([weights[name.replace(".v_proj.", f".{part}_proj.")] for part in "qkv"])
            name = name.replace("self_attn.v_proj.", "attn.in_proj_")
        if name == "text_projection.weight":
            name, weight = "text_projection", weight.T
        for ours, original in OPEN_CLIP.items():
            name = name.replace(ours, original)
        renamed[name] = weight
    width = renamed["positional_embedding"].shape[1]
    return {"text_projection": torch.eye(width)} | renamed


def write_configs(folder: Path, configs: Path, layout: str) -> None:
    """Copy the configurations of a small checkpoint to where those of the published sizes are."""
    for path in folder.glob("*/config.json"):
        target = configs / layout / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def small_tokenizer(folder: Path, padding: str) -> Path:
    """Write a tokenizer with the small vocabulary that the text encoders of `write_checkpoint` have."""
    write_tokenizer(folder, padding=padding)
    return folder
