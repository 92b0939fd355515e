"""The embedded networks that read text: Stable Diffusion's CLIP text encoder and tokenizer, very small."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffseg.tiny.recipe.tokenizer import CONTEXT_TOKENS, END, START, Words

__all__ = ["TEXT_WIDTH", "build_text_encoder", "build_tokenizer", "reading_unet"]

TEXT_WIDTH = 64


def build_tokenizer(words: Words) -> CLIPTokenizer:
    """The same tokens as `words`, for any text."""
    return CLIPTokenizer(vocab=dict(words.ids), merges=list(words.merges), model_max_length=CONTEXT_TOKENS)


def build_text_encoder(words: Words, seed: int) -> CLIPTextModel:
    """A freshly initialised encoder; the global torch generator is left as it was."""
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
def reading_unet(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """A copy of a text-free UNet that reads `TEXT_WIDTH` numbers a token and, until trained, makes nothing of them.

    Its keys of cross-attention are new, its values zeros: the output is that of `unet` with the zero context.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = UNet2DConditionModel.from_config({**unet.config, "cross_attention_dim": TEXT_WIDTH})
    read = {name: value for name, value in unet.state_dict().items() if ".attn2.to_k." not in name}
    for name, value in reader.state_dict().items():
        if ".attn2.to_v." in name:
            read[name] = torch.zeros_like(value)
    reader.load_state_dict(read, strict=False)
    return reader.eval()
