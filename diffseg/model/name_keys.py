"""The keys of names in every cross-attention layer, which are computed once for each name of a worker.

Axes: B images in the batch, K tokens of the second context, T names, W background words, N tokens that are kept, D
features of a token, C channels of a layer's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from diffusers import UNet2DConditionModel

from diffseg.attention.layers import attention_layers
from diffseg.attention.name_context import NameContext
from diffseg.devices import to_device
from diffseg.model.text import EMPTY_PROMPT, TextEncoders, prompt_of_names

MOST_TOKENS = 8192
"""Tokens whose keys are kept. Those of SD 1.5 then take 400 MB in float32."""

ImageNames = Sequence[str]


class NameKeys:
    """Makes the second context of batches, see `diffseg.attention.name_context`, from the names of their images.

    Each name is embedded in a prompt of its own and projected by itself, so that neither the other names nor the order
    in which a worker meets them change the last bits of its keys.
    """

    def __init__(self, text: TextEncoders, unet: UNet2DConditionModel) -> None:
        """Prepare the layers of a UNet; nothing is computed yet.

        Args:
            text: The text encoders of the checkpoint.
            unet: Its UNet.
        """
        self.text, self.unet = text, unet
        self._layers = [layer for layer in attention_layers(unet) if layer.module.is_cross_attention]
        self._rows: dict[tuple[str, str], list[int]] = {}
        self._tables: dict[str, torch.Tensor] = {}
        self._last: tuple[object, NameContext] | None = None

    @torch.inference_mode()
    def context(self, names: Sequence[ImageNames], template: str = "{}", words: Sequence[str] = ()) -> NameContext:
        """Return the second context of a batch.

        Args:
            names: The names of each image.
            template: Prompt of a name, which replaces the {}.
            words: Background words of all images. A word that is a name of an image does not count there.

        Returns:
            Its names are those of the image with the most names, T, and then the W words. Names that an image lacks
            have no tokens.
        """
        key = (tuple(map(tuple, names)), template, tuple(words))
        if self._last is None or self._last[0] != key:
            self._last = key, self._context(names, template, words)
        return self._last[1]

    def _context(self, names: Sequence[ImageNames], template: str, words: Sequence[str]) -> NameContext:
        lists = list(dict.fromkeys(tuple(of_image) for of_image in names))
        is_same = len(lists) == 1  # as in runs with one vocabulary for all images
        self._add(dict.fromkeys(chain(*lists, words)), template)
        most = max(1, *map(len, lists))
        tokens = [self._tokens(of_image, template, words, most) for of_image in (lists if is_same else names)]
        longest = max(len(rows) for rows, _ in tokens)
        padded = torch.tensor([rows + [0] * (longest - len(rows)) for rows, _ in tokens])
        weights = torch.zeros(len(tokens), most + len(words), longest)
        for of_image, (rows, names_of_rows) in zip(weights, tokens, strict=True):
            for column, name in enumerate(names_of_rows, start=len(rows) - len(names_of_rows)):
                of_image[name, column] = 1 / names_of_rows.count(name)
        is_padding = torch.tensor([[column >= len(rows) for column in range(longest)] for rows, _ in tokens])
        device = self.unet.device
        positions = to_device(padded, device)
        return NameContext(
            keys={name: table[positions] for name, table in self._tables.items()},
            weights=to_device(weights, device),
            is_padding=to_device(is_padding, device) if is_padding.any() else None,
        )

    def _tokens(self, names: ImageNames, template: str, words: Sequence[str], most: int) -> tuple[list[int], list[int]]:
        """Return the rows of an image's tokens in the tables, and for those after the empty prompt's their name."""
        folded = {name.casefold() for name in names}
        numbered = [*enumerate(names), *((most + i, w) for i, w in enumerate(words) if w.casefold() not in folded)]
        rows, of_rows = list(self._rows["", template]), []
        for number, name in numbered:
            rows_of_name = self._rows[name, template]
            rows += rows_of_name
            of_rows += [number] * len(rows_of_name)
        return rows, of_rows

    def _add(self, names: dict[str, None], template: str) -> None:
        """Add names that are not in the tables yet, and the empty prompt, as the name ""."""
        missing = [name for name in ("", *names) if (name, template) not in self._rows]
        if not missing:
            return
        if sum(map(len, self._rows.values())) > MOST_TOKENS:
            self._rows, self._tables, missing = {}, {}, ["", *names]
        start = sum(map(len, self._rows.values()))
        added: dict[str, list[torch.Tensor]] = {
            layer.name: [self._tables[layer.name]] for layer in self._layers if self._tables
        }
        for name in missing:
            states = self._embed(name, template)
            self._rows[name, template] = list(range(start, start + len(states)))
            start += len(states)
            for layer in self._layers:
                added.setdefault(layer.name, []).append(layer.module.to_k(states))
        self._tables = {name: torch.cat(keys) for name, keys in added.items()}

    def _embed(self, name: str, template: str) -> torch.Tensor:
        """Return the embedded tokens of a name, or for "" those of the empty prompt without padding, [N, D]."""
        prompt = prompt_of_names([name], template) if name else EMPTY_PROMPT
        return to_device(self.text.embed_tokens(prompt), self.unet.device, self.unet.dtype)
