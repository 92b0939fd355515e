"""CLIP at every position of an image: its last layer without attention (MaskCLIP; Zhou, Loy and Dai, ECCV 2022).

CLIP's image encoder attends to all positions to compute one vector for the image. If the last layer mixes no positions,
each position keeps a vector of its own, which still lies in the space that images share with texts.

Axes: B images, T names, D dimensions of the shared space, S pixels per side, N = h·w positions beside the class token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from diffseg.devices import to_device
from diffseg.model.config_fields import check_clip
from diffseg.model.files import CLIP_FILES, fingerprint
from diffseg.model.layout import CheckpointError, listing, load_part, read_json, resolve, weights_variant
from diffseg.model.text_encoders import check_size, check_tokenizer_files, load_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Colour statistics, 0 to 1, of the training images of OpenAI's models; a checkpoint may have others."""

TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of some {}.",
    "a close-up of a {}.",
    "a {} in the background.",
    "there is a {} in the scene.",
)
"""Texts for a name. Its vector is the mean over them, which depends less on the wording."""

DISTRACTORS = ("background", "sky", "ground", "grass", "trees", "water", "wall", "floor", "building", "road")
"""What a position may show apart from the image's names. CLIP has no class for the rest, so that without distractors a
single name would get every position."""

NAME_CACHE_SIZE = 16384
"""Vectors of names that are kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A CLIP in memory.

    Attributes:
        model: The CLIPModel of transformers.
        tokenizer: Its tokenizer.
        mean: float32 [3, 1, 1], mean of colours, 0 to 1.
        std: float32 [3, 1, 1], standard deviation of colours.
        sha256: Digest of its files.
    """

    model: Any
    tokenizer: Any
    mean: torch.Tensor
    std: torch.Tensor
    sha256: str
    _name_cache: dict[str, torch.Tensor] = field(default_factory=dict)

    @torch.inference_mode()
    def probabilities(
        self, pixels: torch.Tensor, names: Sequence[Sequence[str]], distractors: Sequence[str] = DISTRACTORS
    ) -> torch.Tensor:
        """Return the probability of each name at each position: the softmax over the image's names and distractors.

        Similarities are multiplied by the model's own scale, which is 100 in OpenAI's models.

        Args:
            pixels: float32 [B, 3, S, S] in [−1, 1].
            names: Names of each image.
            distractors: Further texts; those that are names of the image are left out.

        Returns:
            float32 [B, T, h, w], 0 to 1, where T is the largest number of names; 0 for the names that an image lacks.
        """
        features, scale = self.dense_features(pixels), self.model.logit_scale.exp()
        probabilities = features.new_zeros(len(names), max(1, *map(len, names)), *features.shape[2:])
        for image, image_names in enumerate(names):
            if image_names:
                folded = {name.casefold() for name in image_names}
                texts = [*image_names, *(text for text in distractors if text not in folded)]
                similarities = torch.einsum("td,dhw->thw", self.name_vectors(texts), features[image])
                of_all = (scale * similarities).softmax(dim=0)
                probabilities[image, : len(image_names)] = of_all[: len(image_names)]
        return probabilities

    @torch.inference_mode()
    def dense_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return a vector of length 1 for each position, float32 [B, D, h, w], of float32 [B, 3, S, S] in [−1, 1]."""
        states = self.penultimate_states(self.preprocess(pixels))
        vision = self.model.vision_model
        last = vision.encoder.layers[-1]
        tokens = states + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states)))
        tokens = tokens + last.mlp(last.layer_norm2(tokens))
        vectors = self.model.visual_projection(vision.post_layernorm(tokens[:, 1:]))
        side = round(vectors.shape[1] ** 0.5)
        return F.normalize(vectors, dim=-1).transpose(1, 2).unflatten(2, (side, side))

    def preprocess(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize pixels on the device to whole patches, no fewer than in training, and normalise their colours."""
        config = self.model.config.vision_config
        whole = round(pixels.shape[-1] / config.patch_size) * config.patch_size
        side = max(whole, config.image_size)
        pixels = to_device(pixels, self.mean.device)
        if side != pixels.shape[-1]:
            pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True)
        return ((pixels.clamp(-1, 1) + 1) / 2 - self.mean) / self.std

    def penultimate_states(self, preprocessed: torch.Tensor) -> torch.Tensor:
        """Return the last layer's input, [B, 1 + N, width]; positional embeddings are interpolated to other sizes."""
        vision = self.model.vision_model
        return vision(preprocessed, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]

    def name_vectors(self, names: Sequence[str]) -> torch.Tensor:
        """Return a vector of length 1 for each name, float32 [T, D]: the mean over the templates."""
        return torch.stack([self._name_vector(name) for name in names])

    @torch.inference_mode()
    def _name_vector(self, name: str) -> torch.Tensor:
        """Embed a name in a batch of its own, so that no other name changes its last bits. Long texts are truncated."""
        if name not in self._name_cache:
            if len(self._name_cache) >= NAME_CACHE_SIZE:
                del self._name_cache[next(iter(self._name_cache))]
            texts = [template.replace("{}", name) for template in TEMPLATES]
            longest = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            # No mask is needed: a token attends to none of the padding behind it, and only the end token is read.
            pooled = self.model.text_model(tokens.input_ids.to(self.mean.device)).pooler_output
            vectors = F.normalize(self.model.text_projection(pooled), dim=-1)
            self._name_cache[name] = F.normalize(vectors.mean(dim=0), dim=0)
        return self._name_cache[name]


def load_clip(model: str | os.PathLike[str], *, device: str = "cpu") -> Clip:
    """Load a CLIP in the transformers layout, always in float32, from safetensors only and without remote code.

    Args:
        model: A local folder or a hub id.
        device: Torch device.

    Raises:
        CheckpointError: A part is missing or of another kind.
    """
    folder = resolve(model, files=CLIP_FILES)
    config = _checked_config(folder)
    from transformers import CLIPModel  # slow to import, and few runs name segments by CLIP

    tokenizer = load_tokenizer(folder, f"tokenizer of {folder}")
    words = (config.get("text_config") or {}).get("vocab_size")
    if isinstance(words, int) and len(tokenizer) > words:
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, but its text encoder knows {words}"
        )
    variant = weights_variant(folder, str(folder), CLIP_FILES.part(""), "float32")
    check_size(folder, str(folder), CLIP_FILES.part(""), "float32", CLIPModel)
    network = load_part(folder, "", CLIPModel, dtype=torch.float32, variant=variant)
    mean, std = _colour_statistics(folder)
    return Clip(
        model=network.eval().requires_grad_(False).to(device),
        tokenizer=tokenizer,
        mean=mean.to(device),
        std=std.to(device),
        sha256=fingerprint(folder, CLIP_FILES),
    )


def _checked_config(folder: Path) -> dict[str, Any]:
    """Check that a folder holds the files of a CLIP, and return its configuration."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: looked for config.json of a CLIPModel; the folder holds {listing(folder)}")
    config = read_json(folder / "config.json")
    check_clip(folder / "config.json", config)
    if config.get("model_type") != "clip":
        raise CheckpointError(f"{folder}: is a {config.get('model_type')}; looked for a clip (transformers' CLIPModel)")
    check_tokenizer_files(folder, str(folder))
    return config


def _colour_statistics(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of colours, float32 [3, 1, 1] each."""
    path = folder / "preprocessor_config.json"
    config = read_json(path) if path.is_file() else {}
    statistics = []
    for key, default in (("image_mean", MEAN), ("image_std", STD)):
        values = config.get(key, default)
        try:
            tensor = torch.tensor([float(value) for value in values]).reshape(3, 1, 1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {key} is {values}; expected a number for each of three colours") from error
        statistics.append(tensor)
    mean, std = statistics
    if not (torch.isfinite(torch.stack(statistics)).all() and (std > 0).all()):
        raise CheckpointError(f"{path}: image_mean and image_std are {config}; expected numbers, and image_std above 0")
    return mean, std
