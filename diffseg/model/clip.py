"""CLIP at every place of an image: its last layer without attention (MaskCLIP; Zhou, Loy and Dai, ECCV 2022).

CLIP's image tower looks at all positions to make one vector for the image. Where the last layer mixes no positions,
each keeps a vector of its own that still lies among those of texts.

Axes: B images, T names, D numbers of the shared space, S pixels of a side, N = h·w positions, beside that of the class.
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
from diffseg.model.files import CLIP_FILES, fingerprint
from diffseg.model.layout import CheckpointError, load_part, read_json, resolve

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of colours, 0 to 1, in the images that OpenAI's models were trained on; a checkpoint may say otherwise."""

TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of some {}.",
    "a close-up of a {}.",
    "a {} in the background.",
    "there is a {} in the scene.",
)
"""A name's vector is the mean over these, which says less of how it was put."""

REST = ("background", "sky", "ground", "grass", "trees", "water", "wall", "floor", "building", "road")
"""What a position may show beside an image's names. CLIP has no class for the rest, and a name alone would have all."""

KEPT_NAMES = 16384


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A CLIP in memory. sha256: of its files. mean, std: float32 [3, 1, 1], of colours from 0 to 1."""

    model: Any
    tokenizer: Any
    mean: torch.Tensor
    std: torch.Tensor
    sha256: str
    _vectors: dict[str, torch.Tensor] = field(default_factory=dict)

    @torch.inference_mode()
    def probabilities(
        self, pixels: torch.Tensor, names: Sequence[Sequence[str]], rest: Sequence[str] = REST
    ) -> torch.Tensor:
        """What each position shows, float32 [B, T, h, w], 0 to 1: the softmax over an image's names and the rest.

        pixels: float32 [B, 3, S, S] in [−1, 1]. names: of each image, T of the longest; the others' are 0 beyond
        theirs. Similarities count by the model's own scale, 100 in OpenAI's.
        """
        places, scale = self.places(pixels), self.model.logit_scale.exp()
        found = places.new_zeros(len(names), max(1, *map(len, names)), *places.shape[2:])
        for image, own in enumerate(names):
            if own:
                known = {name.casefold() for name in own}
                told = [*own, *(text for text in rest if text not in known)]
                similarities = torch.einsum("td,dhw->thw", self.texts(told), places[image])
                found[image, : len(own)] = (scale * similarities).softmax(dim=0)[: len(own)]
        return found

    @torch.inference_mode()
    def places(self, pixels: torch.Tensor) -> torch.Tensor:
        """A vector of length 1 for each position, float32 [B, D, h, w], of float32 [B, 3, S, S] pixels in [−1, 1]."""
        states = self.before_last(self.prepared(pixels))
        vision = self.model.vision_model
        last = vision.encoder.layers[-1]
        tokens = states + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states)))
        tokens = tokens + last.mlp(last.layer_norm2(tokens))
        vectors = self.model.visual_projection(vision.post_layernorm(tokens[:, 1:]))
        side = round(vectors.shape[1] ** 0.5)
        return F.normalize(vectors, dim=-1).transpose(1, 2).unflatten(2, (side, side))

    def prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels as the image tower takes them, on its device: whole patches, and no fewer than it was trained on."""
        config = self.model.config.vision_config
        whole = round(pixels.shape[-1] / config.patch_size) * config.patch_size
        side = max(whole, config.image_size)
        pixels = to_device(pixels, self.mean.device)
        if side != pixels.shape[-1]:
            pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True)
        return ((pixels.clamp(-1, 1) + 1) / 2 - self.mean) / self.std

    def before_last(self, prepared: torch.Tensor) -> torch.Tensor:
        """What the last layer is given, [B, 1 + N, width]; positional embeddings are interpolated to other sizes."""
        vision = self.model.vision_model
        return vision(prepared, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]

    def texts(self, names: Sequence[str]) -> torch.Tensor:
        """A vector of length 1 for each name, float32 [T, D]: the mean over the templates."""
        return torch.stack([self._text(name) for name in names])

    @torch.inference_mode()
    def _text(self, name: str) -> torch.Tensor:
        """Each name by itself, so that no other one changes its last bits. What is too long for the model is cut."""
        if name not in self._vectors:
            if len(self._vectors) >= KEPT_NAMES:
                del self._vectors[next(iter(self._vectors))]
            texts = [template.replace("{}", name) for template in TEMPLATES]
            longest = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            # Without a mask: no token looks at those behind it, and the end's is the one that counts.
            pooled = self.model.text_model(tokens.input_ids.to(self.mean.device)).pooler_output
            vectors = F.normalize(self.model.text_projection(pooled), dim=-1)
            self._vectors[name] = F.normalize(vectors.mean(dim=0), dim=0)
        return self._vectors[name]


def load_clip(model: str | os.PathLike[str], *, device: str = "cpu") -> Clip:
    """A CLIP of the transformers layout: a local folder, or a hub id. float32 always, safetensors only, no remote code.

    Raises CheckpointError where a part is missing or of another kind.
    """
    folder = resolve(model, files=CLIP_FILES)
    config = _checked_config(folder)
    from transformers import CLIPModel, CLIPTokenizer  # slow to import, and few runs name by CLIP

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise CheckpointError(f"tokenizer of {folder}: its files do not load: {error}") from error
    words = config.get("text_config", {}).get("vocab_size")
    if isinstance(words, int) and len(tokenizer) > words:
        raise CheckpointError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, and its text tower knows {words}")
    variant = None if any(".fp16." not in path.name for path in folder.glob("model*.safetensors")) else "fp16"
    network = load_part(folder, "", CLIPModel, dtype=torch.float32, variant=variant)
    mean, std = _colours(folder)
    return Clip(
        model=network.eval().requires_grad_(False).to(device),
        tokenizer=tokenizer,
        mean=mean.to(device),
        std=std.to(device),
        sha256=fingerprint(folder, CLIP_FILES),
    )


def _checked_config(folder: Path) -> dict[str, Any]:
    files = sorted(path.name for path in folder.iterdir())
    there = ", ".join(files) or "nothing"
    if "config.json" not in files:
        raise CheckpointError(f"{folder}: looked for config.json of a CLIPModel; the folder holds {there}")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise CheckpointError(f"{folder}: is a {config.get('model_type')}; looked for a clip (transformers' CLIPModel)")
    if not list(folder.glob("model*.safetensors")):
        raise CheckpointError(
            f"{folder}: looked for model.safetensors; found {there}. Only safetensors are loaded: pickled .bin files "
            "can run code"
        )
    # Without its files the tokenizer would come out empty, and make unknown words of all names.
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
        raise CheckpointError(f"{folder}: looked for vocab.json and merges.txt (or tokenizer.json); found {there}")
    return config


def _colours(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of colours, float32 [3, 1, 1] each."""
    path = folder / "preprocessor_config.json"
    own = read_json(path) if path.is_file() else {}
    found = []
    for key, usual in (("image_mean", MEAN), ("image_std", STD)):
        values = own.get(key, usual)
        try:
            tensor = torch.tensor([float(value) for value in values]).reshape(3, 1, 1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {key} is {values}; expected a number for each of three colours") from error
        found.append(tensor)
    if not (torch.isfinite(torch.stack(found)).all() and (found[1] > 0).all()):
        raise CheckpointError(f"{path}: image_mean and image_std are {own}; expected numbers, and image_std above 0")
    return found[0], found[1]
