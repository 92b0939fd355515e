"""Models of open_clip, such as MobileCLIP, which is an extra: pip install 'diffseg-pipeline[open-clip]'.

A folder holds open_clip_config.json and open_clip_model.safetensors, as on the hub, and a tokenizer.json if the model
has another tokenizer than OpenAI's.

Axes: T texts, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffseg.clip.json_tokenizer import load_json_tokenizer
from diffseg.clip.layout import MEAN, STD, ClipLayout, colour_statistics
from diffseg.clip.open_clip_config import read_config
from diffseg.clip.open_clip_towers import tower_of
from diffseg.model.files import OPEN_CLIP_FILES
from diffseg.model.layout import CheckpointError, listing, weights_variant


def load(folder: Path, device: str) -> ClipLayout:
    """Load a model of open_clip in float32, from safetensors only.

    Args:
        folder: Folder with open_clip_config.json and open_clip_model.safetensors.
        device: Torch device.

    Raises:
        CheckpointError: open_clip is not installed, a file is missing or damaged, or the image encoder is of a kind
            whose last layer is not known here.
    """
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: is a model of open_clip, which does not load on this machine ({error}): pip install "
            "'diffseg-pipeline[open-clip]'"
        ) from error
    path = folder / OPEN_CLIP_FILES.config
    config = read_config(path)
    model_config = config["model_cfg"]
    weights = _weights(folder)
    _check_size(folder, model_config, weights)
    model = _build(folder, model_config)
    try:
        missing = model.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:  # weights of other shapes
        raise CheckpointError(f"{folder}: its weights do not fit {path.name}: {error}") from error
    if missing:
        raise CheckpointError(f"{folder}: its files lack weights: {missing[0]} is one of {len(missing)}")
    model.eval().requires_grad_(False).to(device)
    given = config.get("preprocess_cfg") or {}
    mean, std = colour_statistics(path, given.get("mean", MEAN), given.get("std", STD), ("mean", "std"), device)
    tower = tower_of(folder, model.visual)
    image_size = model_config["vision_cfg"].get("image_size", 224)
    return ClipLayout(
        model=model,
        mean=mean,
        std=std,
        image_size=image_size,
        **tower._asdict(),
        tokenize=_tokenizer(folder, model_config["text_cfg"], open_clip),
        encode_tokens=model.encode_text,
        token_embedding=getattr(getattr(model, "text", model), "token_embedding", None),
        scale=model.logit_scale.exp(),
        bias=model.logit_bias,
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    part = OPEN_CLIP_FILES.part("")
    weights_variant(folder, str(folder), part, "float32")
    weights: dict[str, torch.Tensor] = {}
    for name in part.select([path.name for path in folder.glob("*.safetensors")]):
        try:
            weights |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name}: does not load: {error}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _build(folder: Path, model_config: Mapping[str, Any]) -> Any:
    """Build the network of a configuration with random weights. Nothing is downloaded."""
    from open_clip.model import CLIP, CustomTextCLIP

    fields = {name: value for name, value in model_config.items() if name not in ("custom_text", "multimodal_cfg")}
    fields["vision_cfg"] = {**model_config["vision_cfg"], "timm_model_pretrained": False}
    try:
        return (CustomTextCLIP if model_config.get("custom_text") else CLIP)(**fields)
    except MemoryError:
        raise
    except Exception as error:  # wrong values raise errors of any class
        raise CheckpointError(
            f"{folder}: no model can be built from {OPEN_CLIP_FILES.config}: {error}. A newer open_clip_torch or timm "
            "may know it"
        ) from error


def _check_size(folder: Path, model_config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Check that the configuration describes no more weights than the files hold, before memory is allocated."""
    with torch.device("meta"):
        described = sum(weight.numel() for weight in _build(folder, model_config).parameters())
    held = sum(weight.numel() for weight in weights.values())
    if described > held:
        raise CheckpointError(
            f"{folder / OPEN_CLIP_FILES.config}: describes {described} weights, but the files hold {held}"
        )


def _tokenizer(folder: Path, config: Mapping[str, Any], open_clip: Any) -> Callable[[Sequence[str]], torch.Tensor]:
    """Return the function that turns texts into token ids, int64 [T, L]."""
    length = config.get("context_length", 77)
    if not config.get("hf_tokenizer_name"):
        simple = open_clip.SimpleTokenizer(context_length=length)  # its vocabulary is part of the package
        return lambda texts: simple(list(texts))
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder}: looked for tokenizer.json; found {listing(folder)}")
    from open_clip.tokenizer import get_clean_fn

    clean = get_clean_fn((config.get("tokenizer_kwargs") or {}).get("clean", "whitespace"))
    fast = load_json_tokenizer(folder)

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return fast([clean(text) for text in texts], **options).input_ids

    return tokenize
