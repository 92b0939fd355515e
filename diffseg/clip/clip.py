"""A CLIP in memory: the probability of each name at every position of an image.

Axes: B images, T names or texts, D dimensions of the shared space, S pixels per side, h and w positions, C features of
a position.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import Grid
from diffseg.clip import open_clip_layouts, transformers_layouts
from diffseg.clip.layout import ClipLayout
from diffseg.clip.templates import TEMPLATES
from diffseg.component_settings import ClipSettings, ClipTemplates
from diffseg.devices import to_device
from diffseg.model.files import CLIP_FILES, OPEN_CLIP_FILES, clip_files, fingerprint
from diffseg.model.layout import CheckpointError, listing, resolve_clip

DISTRACTORS = ("background", "sky", "ground", "grass", "trees", "water", "wall", "floor", "building", "road")
"""What a position may show apart from the image's names. CLIP has no class for the rest, so that without distractors a
single name would get every position."""

WHOLE_IMAGE = ClipSettings()
"""The default settings, with which a CLIP reads an image at once."""

TEXT_CACHE_SIZE = 16384
"""Vectors of names that are kept."""


class Guide(NamedTuple):
    """Attention of another model that mixes positions in the CLIP's last layer, see `diffseg.method.clip_guide`.

    Attributes:
        attention: float32 [B, P, P]; rows sum to 1.
        grid: Height and width of its P positions.
    """

    attention: torch.Tensor
    grid: Grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A CLIP in memory.

    Attributes:
        layout: Its parts.
        sha256: Digest of its files.
        words: Further words for a name, by the name. The most probable one counts.
    """

    layout: ClipLayout
    sha256: str
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _text_cache: dict[tuple[str, ClipTemplates], torch.Tensor] = field(default_factory=dict)

    @torch.inference_mode()
    def probabilities(
        self,
        pixels: torch.Tensor,
        names: Sequence[Sequence[str]],
        distractors: Sequence[str] = DISTRACTORS,
        *,
        settings: ClipSettings = WHOLE_IMAGE,
        guide: Guide | None = None,
    ) -> torch.Tensor:
        """Return the probability of each name at each position.

        It is the softmax over the image's names and distractors of similarities times the model's own scale, which is
        100 in OpenAI's models. For a SigLIP it is the sigmoid of scaled and shifted similarities, so that each name is
        judged by itself and distractors change nothing.

        Args:
            pixels: float32 [B, 3, S, S] in [−1, 1].
            names: Names of each image.
            distractors: Further texts; those that are words for a name of the image are left out.
            settings: Windows and templates.
            guide: Attention that replaces the CLIP's own in its last layer; None mixes no positions there.

        Returns:
            float32 [B, T, h, w], 0 to 1, where T is the largest number of names; 0 for the names that an image lacks.
            The grid is that of the guide, or else that of the CLIP's positions.
        """
        features = self.dense_features(pixels, settings, guide)
        probabilities = features.new_zeros(len(names), max(1, *map(len, names)), *features.shape[2:])
        for image, image_names in enumerate(names):
            if image_names:
                groups = [(name, *self.words.get(name, ())) for name in image_names]
                texts = [text for group in groups for text in group]
                folded = {text.casefold() for text in texts}
                texts += [text for text in distractors if self.layout.bias is None and text not in folded]
                vectors = self.name_vectors(texts, settings.clip_templates)
                of_texts = self._of_similarities(torch.einsum("td,dhw->thw", vectors, features[image]))
                parts = of_texts.split([*map(len, groups), len(texts) - sum(map(len, groups))])
                probabilities[image, : len(groups)] = torch.stack([part.amax(dim=0) for part in parts[: len(groups)]])
        return probabilities

    def _of_similarities(self, similarities: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of texts from their similarities to each position, float32 [T, h, w]."""
        layout = self.layout
        if layout.bias is None:
            return (layout.scale * similarities).softmax(dim=0)
        return (layout.scale * similarities + layout.bias).sigmoid()

    @torch.inference_mode()
    def dense_features(
        self, pixels: torch.Tensor, settings: ClipSettings = WHOLE_IMAGE, guide: Guide | None = None
    ) -> torch.Tensor:
        """Return a vector for each position, float32 [B, D, h, w], of float32 [B, 3, S, S] in [−1, 1].

        Vectors have length 1, but where windows overlap they are means of such vectors. Similarities are then means
        over the windows, as in published protocols.
        """
        prepared = self.preprocess(pixels)
        if guide is None:
            return self._by_windows(lambda window: F.normalize(self.layout.dense(window), dim=-1), prepared, settings)
        values = self._by_windows(self.layout.values, prepared, settings)
        # The values are put together before they are mixed, so that a position can attend to all of the image (as in
        # Trident; Shi et al., 2024). ProxyCLIP mixes within each window.
        down, along = (
            bilinear_matrix(tokens, side, device=values.device)
            for tokens, side in zip(values.shape[2:], guide.grid, strict=True)
        )
        mixed = guide.attention @ (down @ values @ along.T).flatten(2).transpose(1, 2)
        return F.normalize(self.layout.project(mixed), dim=-1).transpose(1, 2).unflatten(2, guide.grid)

    def preprocess(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize pixels on the device to whole patches, no fewer than in training, and normalise their colours."""
        layout = self.layout
        side = round(max(pixels.shape[-1], layout.image_size) / layout.patch) * layout.patch
        pixels = to_device(pixels, layout.mean.device)
        if side != pixels.shape[-1]:
            pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True)
        return ((pixels.clamp(-1, 1) + 1) / 2 - layout.mean) / layout.std

    def _by_windows(
        self, read: Callable[[torch.Tensor], torch.Tensor], prepared: torch.Tensor, settings: ClipSettings
    ) -> torch.Tensor:
        """Read an image in windows, and return the mean at each position, float32 [B, C, h, w].

        Args:
            read: From normalised pixels of a window to the features of its positions, float32 [B, n, C].
            prepared: Normalised pixels, float32 [B, 3, S, S].
            settings: Sizes of windows, which are rounded to whole positions.
        """
        patch = self.layout.patch
        side = prepared.shape[-1] // patch
        size = min(side, max(1, round(settings.clip_window / patch))) if settings.clip_window else side
        if size == side:
            return read(prepared).transpose(1, 2).unflatten(2, (side, side))
        stride = min(size, max(1, round((settings.clip_stride or settings.clip_window / 2) / patch)))
        starts = [*range(0, side - size, stride), side - size]
        total, count = None, prepared.new_zeros(side, side)
        for top in starts:
            for left in starts:
                rows, columns = slice(top * patch, (top + size) * patch), slice(left * patch, (left + size) * patch)
                window = read(prepared[:, :, rows, columns]).transpose(1, 2).unflatten(2, (size, size))
                if total is None:
                    total = window.new_zeros(*window.shape[:2], side, side)
                total[:, :, top : top + size, left : left + size] += window
                count[top : top + size, left : left + size] += 1
        assert total is not None
        return total / count

    def name_vectors(self, names: Sequence[str], templates: ClipTemplates = "short") -> torch.Tensor:
        """Return a vector of length 1 for each name, float32 [T, D]: the mean over the templates."""
        return torch.stack([self._name_vector(name, templates) for name in names])

    @torch.inference_mode()
    def _name_vector(self, name: str, templates: ClipTemplates) -> torch.Tensor:
        """Embed a name in a batch of its own, so that no other name changes its last bits. Long texts are truncated."""
        key = (name, templates)
        if key not in self._text_cache:
            if len(self._text_cache) >= TEXT_CACHE_SIZE:
                del self._text_cache[next(iter(self._text_cache))]
            texts = [template.replace("{}", name) for template in TEMPLATES[templates]]
            vectors = F.normalize(self.layout.embed_texts(texts), dim=-1)
            self._text_cache[key] = F.normalize(vectors.mean(dim=0), dim=0)
        return self._text_cache[key]


def load_clip(
    model: str | os.PathLike[str], *, device: str = "cpu", words: Mapping[str, Sequence[str]] | None = None
) -> Clip:
    """Load a CLIP, always in float32, from safetensors only and without remote code.

    Args:
        model: A local folder or a hub id of a CLIP, SigLIP or SigLIP 2 of transformers, or of a model of open_clip.
        device: Torch device.
        words: Further words for a name, by the name.

    Raises:
        CheckpointError: A part is missing or of another kind, or open_clip is needed and not installed.
    """
    folder = resolve_clip(model)
    files = clip_files(folder)
    if not (folder / files.config).is_file():
        raise CheckpointError(
            f"{folder}: looked for {CLIP_FILES.config} of a CLIPModel or SiglipModel, or {OPEN_CLIP_FILES.config}; the "
            f"folder holds {listing(folder)}"
        )
    layouts = transformers_layouts if files is CLIP_FILES else open_clip_layouts
    return Clip(layout=layouts.load(folder, device), sha256=fingerprint(folder, files), words=words or {})
