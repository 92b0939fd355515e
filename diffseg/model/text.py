"""Text as the UNet's conditioning: the encoders of a checkpoint, and prompts in which the places of names are known.

Axes: L tokens of a prompt, D numbers a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.model.layout import CheckpointError, load_part, read_json

ADDED_SDXL = "text_time"
TIME_IDS = 6  # original size, crop corner, target size
KEPT_PROMPTS = 1024

Span = tuple[int, int]
"""First character, and the one after the last."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is told of an image, and where in it the names stand.

    names: what segments may be called. spans: the places of each name in the text, one for each time that it occurs.
    template: of prompts that name fewer of them, should the text be too long.
    """

    text: str
    names: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]
    template: str = "{}"


NOTHING = Prompt(text="", names=(), spans=())


def prompt_of_names(names: Sequence[str], template: str = "{}") -> Prompt:
    """The names one after the other, behind commas, in the place of the template's {}."""
    before, after = template.split("{}")
    spans: list[tuple[Span, ...]] = []
    text = before
    for name in names:
        text += ", " if spans else ""
        spans.append(((len(text), len(text) + len(name)),))
        text += name
    return Prompt(text=text + after if names else "", names=tuple(names), spans=tuple(spans), template=template)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """context: float32 [1, L, D]. added: the further conditioning of SDXL (text_embeds, time_ids), each [1, …]."""

    context: torch.Tensor
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class TextEncoders:
    """The tokenizers and text encoders of a checkpoint: none, one, or the two of SDXL.

    width: of a token where there is no encoder. zeros_for_empty: whether the empty prompt is zeros (SDXL).
    """

    parts: Sequence[tuple[Any, Any]]
    width: int
    time_ids: torch.Tensor | None = None
    zeros_for_empty: bool = False
    _kept: dict[str, Embedding] = field(default_factory=dict)

    def on(self, device: str) -> TextEncoders:
        """The same with its models on the device."""
        self._kept.clear()
        for _, model in self.parts:
            model.requires_grad_(False).to(device)
        return self

    def embed(self, text: str) -> Embedding:
        """The embedding of a prompt, as the checkpoint's own pipeline makes it; what is too long is cut off.

        A checkpoint without a text encoder is conditioned on one zero token, and knows the empty prompt alone.
        """
        if text not in self._kept:
            if len(self._kept) >= KEPT_PROMPTS:
                del self._kept[next(iter(self._kept))]
            self._kept[text] = self._embed(text)
        return self._kept[text]

    @torch.inference_mode()
    def _embed(self, text: str) -> Embedding:
        if not self.parts:
            if text:
                raise ValueError("this checkpoint has no text encoder: it cannot be told names")
            return Embedding(context=torch.zeros(1, 1, self.width))
        outputs = []
        for tokenizer, model in self.parts:
            tokens = self._tokens(tokenizer, text, return_tensors="pt")
            outputs.append(model(tokens.input_ids.to(model.device), output_hidden_states=len(self.parts) > 1))
        if len(outputs) == 1:
            return Embedding(context=outputs[0].last_hidden_state.clone())
        context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = outputs[1].text_embeds.clone()
        if not text and self.zeros_for_empty:
            context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
        assert self.time_ids is not None
        return Embedding(context=context, added={"text_embeds": pooled, "time_ids": self.time_ids.to(pooled.device)})

    def _tokens(self, tokenizer: Any, text: str, **options: Any) -> Any:
        length = self.parts[0][1].config.max_position_embeddings
        return tokenizer(text, padding="max_length", truncation=True, max_length=length, **options)

    def columns(self, prompt: Prompt) -> list[list[int]]:
        """For each name its tokens in the prompt, of all places; none where the prompt was cut off before them.

        Words may be several tokens, and punctuation is tokens of its own, so that words cannot be counted.
        """
        if not self.parts:
            raise ValueError("this checkpoint has no text encoder: it cannot be told names")
        places = self._tokens(self.parts[0][0], prompt.text, return_offsets_mapping=True)["offset_mapping"]
        return [
            [i for i, (first, stop) in enumerate(places) if any(first < b and a < stop for a, b in spans)]
            for spans in prompt.spans
        ]

    def split_to_fit(self, prompt: Prompt) -> list[Prompt]:
        """The prompt if all its names fit, else as few prompts as hold them all, with about as many names each."""
        for count in range(2, len(prompt.names) + 1):
            if self._whole(prompt):
                break
            size = -(-len(prompt.names) // count)
            parts = [prompt.names[start : start + size] for start in range(0, len(prompt.names), size)]
            prompts = [prompt_of_names(part, prompt.template) for part in parts]
            if all(map(self._whole, prompts)):
                return prompts
        return [prompt]

    def _whole(self, prompt: Prompt) -> bool:
        free = self.parts[0][1].config.max_position_embeddings - 2  # of the first and the last token
        return len(self.parts[0][0](prompt.text, add_special_tokens=False)["input_ids"]) <= free


def load_text_encoders(folder: Path, unet: UNet2DConditionModel, resolution: int) -> TextEncoders:
    """The text encoders that model_index.json names, each checked against the UNet. Raises CheckpointError."""
    index_file = folder / "model_index.json"
    index: dict[str, Any] = read_json(index_file) if index_file.is_file() else {}
    has_first = index.get("text_encoder", ["", ""])[1] is not None
    has_second = index.get("text_encoder_2", [None, None])[1] is not None
    added = unet.config.addition_embed_type == ADDED_SDXL
    if (added or has_second) and not (added and has_first and has_second):
        raise CheckpointError(
            f"{folder}: looked for text_encoder and text_encoder_2 in model_index.json and {ADDED_SDXL} as the UNet's "
            "addition_embed_type, which go together; a refiner has the second encoder alone and cannot be used"
        )
    width = unet.config.cross_attention_dim
    if not has_first:
        return TextEncoders(parts=[], width=width)
    ends = ("", "_2") if has_second else ("",)
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32)
    encoders = TextEncoders(
        parts=[_load(folder, f"text_encoder{end}", f"tokenizer{end}") for end in ends],
        width=width,
        time_ids=time_ids if has_second else None,
        zeros_for_empty=has_second and index.get("force_zeros_for_empty_prompt", True),
    )
    empty = encoders.embed("")
    _check_width(folder, "text encoders" if has_second else "text encoder", empty.context, width)
    if has_second:
        embedded = unet.config.projection_class_embeddings_input_dim - TIME_IDS * unet.config.addition_time_embed_dim
        _check_width(folder, "projection of text_encoder_2", empty.added["text_embeds"], embedded)
    return encoders


def _check_width(folder: Path, part: str, embedding: torch.Tensor, width: int) -> None:
    if embedding.shape[-1] != width:
        raise CheckpointError(f"{part} of {folder}: {embedding.shape[-1]} numbers a token; its UNet reads {width}")


def _load(folder: Path, encoder: str, tokenizer: str) -> tuple[Any, Any]:
    """A tokenizer and its text encoder, float32."""
    # transformers is slow to import, and `tiny` has no text encoder
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    weights = list((folder / encoder).glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{encoder} of {folder}: looked for {encoder}/*.safetensors; "
            f"found {', '.join(sorted(p.name for p in (folder / encoder).glob('*'))) or 'nothing'}"
        )
    # Without its files the tokenizer would come out empty, and make an embedding of unknown words.
    files = sorted(path.name for path in (folder / tokenizer).glob("*"))
    if not {"vocab.json", "merges.txt"} <= set(files) and "tokenizer.json" not in files:
        raise CheckpointError(
            f"{tokenizer} of {folder}: looked for {tokenizer}/vocab.json and merges.txt (or tokenizer.json); "
            f"found {', '.join(files) or 'nothing'}"
        )
    architectures = read_json(folder / encoder / "config.json").get("architectures")
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    if not architectures or architectures[0] not in classes:
        raise CheckpointError(f"{encoder} of {folder}: is a {architectures}; looked for {' or '.join(classes)}")
    variant = None if any(".fp16." not in w.name for w in weights) else "fp16"
    model = load_part(folder, encoder, classes[architectures[0]], dtype=torch.float32, variant=variant).eval()
    try:
        words = CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise CheckpointError(f"{tokenizer} of {folder}: its files do not load: {error}") from error
    return words, model
