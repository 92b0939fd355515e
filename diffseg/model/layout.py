"""The files of a Stable Diffusion checkpoint in the diffusers layout: found, checked, hashed, and loaded whole.

safetensors only, no remote code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"
EMBEDDED = {"tiny": TINY, "tiny-text": TINY.with_name("text-checkpoint")}
"""The checkpoints that come with the package: the second reads text."""
NEEDED = (
    "model_index.json",
    "diffseg.json",
    *(f"{part}/{name}" for part in ("vae", "unet", "text_encoder*") for name in ("config.json", "*.safetensors*")),
    "tokenizer*/*",
)
NEEDED_OF_A_VAE = tuple(
    f"{folder}{name}" for folder in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model*.safetensors*")
)
NEEDED_OF_A_CLIP = (
    "config.json",
    "preprocessor_config.json",
    *(f"model*.safetensors{end}" for end in ("", ".index*.json")),
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
)
"""In the transformers layout."""
UNUSED = "*.non_ema.*"  # a second set of weights that some repositories hold beside the one to use


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the part, what was looked for and what was found."""


def resolve(model: str | os.PathLike[str], revision: str | None = None, needed: tuple[str, ...] = NEEDED) -> Path:
    """The local folder of an embedded model, a folder, or a hub id, of which only what is needed is downloaded."""
    if str(model) in EMBEDDED:
        return EMBEDDED[str(model)]
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{model}: is a file; a folder in the diffusers layout is needed (unet/, vae/, …)")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(model)):
        raise CheckpointError(
            f"{model}: no such folder, and not a hub id (owner/name); the embedded models are {' and '.join(EMBEDDED)}"
        )
    try:
        found = snapshot_download(str(model), revision=revision, allow_patterns=list(needed), ignore_patterns=UNUSED)
    except (OSError, ValueError) as error:  # offline, missing, private and gated repositories all are one of these
        raise CheckpointError(
            f"{model}: no such folder here, and the hub gave no such repository"
            f"{f' at revision {revision}' if revision else ''}: {error}"
        ) from error
    return Path(found)


def is_needed(path: str, needed: tuple[str, ...] = NEEDED) -> bool:
    """Whether a file at this path of a checkpoint, with `/` between its parts, is one of those that are read.

    What leads out of the folder, or is no name of a file, never is.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts) or fnmatchcase(parts[-1], UNUSED):
        return False
    patterns = (pattern.split("/") for pattern in needed)
    return any(len(p) == len(parts) and all(map(fnmatchcase, parts, p)) for p in patterns)


def digests(folder: Path, needed: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """sha256, hexadecimal, of each file that is read, by its path with `/`, sorted."""
    found: dict[str, str] = {}
    for path in sorted({p for pattern in needed for p in folder.glob(pattern) if p.is_file() and not p.match(UNUSED)}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
        found[path.relative_to(folder).as_posix()] = content.hexdigest()
    return found


def fingerprint(folder: Path, needed: tuple[str, ...] = NEEDED, *, vae: Path | None = None) -> str:
    """sha256, hexadecimal, over the names and contents of the files that are read.

    vae: the folder of an autoencoder in the place of the model's own, whose files count then as well.
    """
    lines = (f"{path}\0{digest}\n" for path, digest in digests(folder, needed).items())
    own = hashlib.sha256("".join(lines).encode()).hexdigest()
    return own if vae is None else with_digest(own, fingerprint(vae, NEEDED_OF_A_VAE))


def with_digest(own: str, other: str) -> str:
    """sha256, hexadecimal, over a model's digest and that of what is used with it."""
    return hashlib.sha256(f"{own} {other}".encode()).hexdigest()


def _digest(file: Any) -> Any:  # hashlib.file_digest is new in Python 3.11
    content = hashlib.sha256()
    while block := file.read(2**20):
        content.update(block)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the checkpoint. Raises CheckpointError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error


def check_part(folder: Path, part: str, classes: tuple[str, ...]) -> str | None:
    """The variant to load (None or "fp16") of a part (unet, vae) whose configuration and weights are there.

    Raises CheckpointError where the part is missing, of another class, or has no safetensors.
    """
    config = folder / part / "config.json"
    if not config.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{part} of {folder}: looked for {part}/config.json; the folder holds {there}")
    found = read_json(config).get("_class_name")
    if found not in classes:
        raise CheckpointError(f"{part} of {folder}: is a {found}; looked for {' or '.join(classes)}")
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        names = (
            f"diffusion_pytorch_model{middle}.safetensors",
            f"diffusion_pytorch_model.safetensors.index{middle}.json",
        )
        if any((folder / part / name).is_file() for name in names):
            return variant
    there = ", ".join(sorted(p.name for p in (folder / part).iterdir()))
    raise CheckpointError(
        f"{part} of {folder}: looked for diffusion_pytorch_model.safetensors (or .fp16.safetensors); found {there}. "
        "Only safetensors are loaded: pickled .bin and .ckpt files can run code"
    )


def load_part(folder: Path, part: str, model_class: Any, *, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """A model of diffusers or transformers, every weight of it from the files but for names that begin as in `unused`.

    Both libraries fill weights that a file lacks with random numbers and go on; here that is a CheckpointError, as are
    files that are cut off or do not fit the configuration.
    """
    try:
        model, report = model_class.from_pretrained(
            folder, subfolder=part, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{part} of {folder}: its files do not load: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise CheckpointError(f"{part} of {folder}: its files lack weights, {missing[0]} to name one of {len(missing)}")
    return model
