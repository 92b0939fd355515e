"""The networks of the embedded text model: a small CLIP text encoder, its tokenizer, and a UNet that uses it."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffseg.tiny.recipe.tokenizer import CONTEXT_TOKENS, END, START, WordTokenizer

__all__ = ["TEXT_WIDTH", "build_text_encoder", "build_text_unet", "build_tokenizer"]

TEXT_WIDTH = 64
"""Channels of a token after the text encoder."""


def build_tokenizer(words: WordTokenizer) -> CLIPTokenizer:
    """Return a CLIP tokenizer with the same tokens as `words`, which accepts any text."""
    return CLIPTokenizer(vocab=dict(words.ids), merges=list(words.merges), model_max_length=CONTEXT_TOKENS)


def build_text_encoder(words: WordTokenizer, seed: int) -> CLIPTextModel:
    """Build an initialised text encoder, without changing the global torch generator."""
    config = CLIPTextConfig(
        vocab_size=len(words.ids),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=words.ids[START],
        eos_token_id=words.ids[END],
        pad_token_id=words.ids[END],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(config).eval()


@torch.no_grad()
def build_text_unet(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """Copy a text-free UNet into one with a context of `TEXT_WIDTH` channels, which it ignores until it is trained.

    The key projections of its cross-attention are initialised at random and the value projections are zero, so the
    output is that of `unet` with the zero context.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_unet = UNet2DConditionModel.from_config({**unet.config, "cross_attention_dim": TEXT_WIDTH})
    weights = {name: value for name, value in unet.state_dict().items() if ".attn2.to_k." not in name}
    for name, value in text_unet.state_dict().items():
        if ".attn2.to_v." in name:
            weights[name] = torch.zeros_like(value)
    text_unet.load_state_dict(weights, strict=False)
    return text_unet.eval()
