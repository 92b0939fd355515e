"""Text as the UNet's conditioning: prompts in which the names are located, and their embeddings.

Axes: L tokens of a prompt, D features of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

PROMPT_CACHE_SIZE = 1024
"""Embeddings of prompts that are kept."""

Span = tuple[int, int]
"""First character of a name in a text, and the character after its last one."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The text that conditions the pass over an image, and where the names stand in it.

    Attributes:
        text: The text.
        names: The names that segments may get.
        spans: The spans of each name in the text, one for each occurrence.
        template: Template of prompts with fewer of the names, for a text that is too long.
    """

    text: str
    names: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]
    template: str = "{}"


EMPTY_PROMPT = Prompt(text="", names=(), spans=())


def prompt_of_names(names: Sequence[str], template: str = "{}") -> Prompt:
    """Return a prompt that lists the names, separated by commas, in place of the template's {}."""
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
    """The embedding of a prompt.

    Attributes:
        context: float32 [1, L, D].
        added: Further conditioning of SDXL (text_embeds), each [1, …].
    """

    context: torch.Tensor
    added: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class TextEncoders:
    """The tokenizers and text encoders of a checkpoint.

    Attributes:
        parts: Pairs of a tokenizer and its encoder: none, one, or the two of SDXL.
        width: Features of a token of the context, for a checkpoint without an encoder.
        zeros_for_empty: Whether the empty prompt is embedded as zeros (SDXL).
    """

    parts: Sequence[tuple[Any, Any]]
    width: int
    zeros_for_empty: bool = False
    _cache: dict[str, Embedding] = field(default_factory=dict)

    def on(self, device: str) -> TextEncoders:
        """Move the encoders to a device, and return this object."""
        self._cache.clear()
        for _, model in self.parts:
            model.requires_grad_(False).to(device)
        return self

    def embed(self, text: str) -> Embedding:
        """Return the embedding of a prompt as the checkpoint's own pipeline computes it; long texts are truncated.

        A checkpoint without a text encoder is conditioned on one zero token, and accepts only the empty prompt.
        """
        if text not in self._cache:
            if len(self._cache) >= PROMPT_CACHE_SIZE:
                del self._cache[next(iter(self._cache))]
            self._cache[text] = self._embed(text)
        return self._cache[text]

    @torch.inference_mode()
    def _embed(self, text: str) -> Embedding:
        if not self.parts:
            if text:
                raise ValueError("this checkpoint has no text encoder: it cannot read names")
            return Embedding(context=torch.zeros(1, 1, self.width))
        outputs = []
        for tokenizer, model in self.parts:
            tokens = self._tokenize(tokenizer, text, return_tensors="pt")
            outputs.append(model(tokens.input_ids.to(model.device), output_hidden_states=len(self.parts) > 1))
        if len(outputs) == 1:
            return Embedding(context=outputs[0].last_hidden_state.clone())
        context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = outputs[1].text_embeds.clone()
        if not text and self.zeros_for_empty:
            context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
        return Embedding(context=context, added={"text_embeds": pooled})

    @torch.inference_mode()
    def embed_tokens(self, prompt: Prompt) -> torch.Tensor:
        """Return the embeddings of the tokens of a prompt's names, float32 [n, D], without padding behind the prompt.

        A token attends to none of those behind it, so the padding would only cost time. A prompt without names gives
        all of its tokens, including the start and the end token.
        """
        if not self.parts:
            raise ValueError("this checkpoint has no text encoder: it cannot read names")
        states = []
        for tokenizer, model in self.parts:
            longest = model.config.max_position_embeddings
            tokens = tokenizer(prompt.text, truncation=True, max_length=longest, return_tensors="pt")
            output = model(tokens.input_ids.to(model.device), output_hidden_states=len(self.parts) > 1)
            states.append(output.hidden_states[-2] if len(self.parts) > 1 else output.last_hidden_state)
        embedded = torch.cat(states, dim=-1)[0]
        if not prompt.names:
            return embedded
        return embedded[[column for columns in self.columns(prompt) for column in columns]]

    def _tokenize(self, tokenizer: Any, text: str, **options: Any) -> Any:
        length = self.parts[0][1].config.max_position_embeddings
        return tokenizer(text, padding="max_length", truncation=True, max_length=length, **options)

    def columns(self, prompt: Prompt) -> list[list[int]]:
        """Return the positions in the prompt of each name's tokens, over all its occurrences.

        A list is empty if the prompt was truncated before the name. Positions come from characters: a word may be
        several tokens, and punctuation has tokens of its own, so words cannot be counted.
        """
        if not self.parts:
            raise ValueError("this checkpoint has no text encoder: it cannot read names")
        offsets = self._tokenize(self.parts[0][0], prompt.text, return_offsets_mapping=True)["offset_mapping"]
        return [
            [i for i, (first, stop) in enumerate(offsets) if any(first < b and a < stop for a, b in spans)]
            for spans in prompt.spans
        ]

    def split_to_fit(self, prompt: Prompt) -> list[Prompt]:
        """Return the prompt if all its names fit, else the fewest prompts that hold them, with about equal numbers."""
        for count in range(2, len(prompt.names) + 1):
            if self._fits(prompt):
                break
            size = -(-len(prompt.names) // count)
            parts = [prompt.names[start : start + size] for start in range(0, len(prompt.names), size)]
            prompts = [prompt_of_names(part, prompt.template) for part in parts]
            if all(map(self._fits, prompts)):
                return prompts
        return [prompt]

    def _fits(self, prompt: Prompt) -> bool:
        free = self.parts[0][1].config.max_position_embeddings - 2  # without the start and the end token
        return len(self.parts[0][0](prompt.text, add_special_tokens=False)["input_ids"]) <= free
