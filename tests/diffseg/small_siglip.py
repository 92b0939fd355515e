"""SigLIPs of reduced width with random weights, written by transformers in the files of published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_checkpoints import change_json, write_json
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

SIDE, PATCH, LENGTH = 16, 4, 16
WORDS = ("a", "photo", "of", "the", "red", "blue", "tshirt", "t", "-", "shirt", ".", "cat")


def write_siglip(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a `siglip` or a `siglip2` (NaFlex), whose towers have one head of attention."""
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = tower | {"vocab_size": len(WORDS) + 2, "max_position_embeddings": LENGTH, "projection_size": 24}
    vision: dict[str, Any] = tower | {"patch_size": PATCH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "siglip":
            vision |= {"image_size": SIDE}
            model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        else:
            vision |= {"num_patches": (SIDE // PATCH) ** 2}
            model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.2)
            model.logit_scale.fill_(2.3)
            model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    write_word_tokenizer(folder, "SiglipTokenizer" if kind == "siglip" else "GemmaTokenizerFast")
    write_json(folder / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    return folder


def write_word_tokenizer(folder: Path, tokenizer_class: str) -> None:
    """Write a tokenizer.json with a token for each word, an end token, and padding on the right."""
    vocabulary = {"<pad>": 0, "</s>": 1, **{word: number for number, word in enumerate(WORDS, 2)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="</s>", padding_side="right"
    ).save_pretrained(folder)

    change_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
