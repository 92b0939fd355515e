"""Locate the folder of a model, check its files, and load them completely.

Only safetensors are loaded, and no remote code is run.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from diffseg.model.files import CHECKPOINT_FILES, UNUSED, ModelFiles

TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"
"""Folder of the embedded model `tiny`."""

EMBEDDED = {"tiny": TINY, "tiny-text": TINY.with_name("text-checkpoint")}
"""Folders of the checkpoints that this package includes; `tiny-text` reads text."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the part, what was expected and what was found."""


def resolve(model: str | os.PathLike[str], revision: str | None = None, files: ModelFiles = CHECKPOINT_FILES) -> Path:
    """Return the local folder of a model.

    Args:
        model: An embedded model, a local folder, or a hub id, of which only the files that are read are downloaded.
        revision: Branch, tag or commit of the hub id.
        files: The kind of model.

    Raises:
        CheckpointError: There is no such folder or repository.
    """
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
    patterns = list(files.patterns)
    try:
        folder = snapshot_download(str(model), revision=revision, allow_patterns=patterns, ignore_patterns=UNUSED)
    except (OSError, ValueError) as error:  # raised offline, and for missing, private and gated repositories
        raise CheckpointError(
            f"{model}: no such folder here, and no such repository could be downloaded from the hub"
            f"{f' at revision {revision}' if revision else ''}: {error}"
        ) from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error


def check_part(folder: Path, part: str, classes: tuple[str, ...]) -> str | None:
    """Check that a part of a checkpoint has a configuration and weights of an expected class.

    Args:
        folder: The checkpoint.
        part: Folder of the part in it: unet, vae, or empty.
        classes: Names of the classes that can be loaded.

    Returns:
        The variant of the weights to load, None or "fp16".

    Raises:
        CheckpointError: The part is missing, is of another class, or has no safetensors.
    """
    config = folder / part / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{part} of {folder}: looked for {part}/config.json; the folder holds {listing(folder)}")
    class_name = read_json(config).get("_class_name")
    if class_name not in classes:
        raise CheckpointError(f"{part} of {folder}: is a {class_name}; looked for {' or '.join(classes)}")
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        names = (
            f"diffusion_pytorch_model{middle}.safetensors",
            f"diffusion_pytorch_model.safetensors.index{middle}.json",
        )
        if any((folder / part / name).is_file() for name in names):
            return variant
    raise CheckpointError(
        f"{part} of {folder}: looked for diffusion_pytorch_model.safetensors (or .fp16.safetensors); "
        f"found {listing(folder / part)}. Only safetensors are loaded: pickled .bin and .ckpt files can run code"
    )


def listing(folder: Path) -> str:
    """Return the names of the files in a folder, or `nothing`, for a message."""
    return ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"


def load_part(folder: Path, part: str, model_class: Any, *, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """Load a model of diffusers or transformers, with every weight read from its files.

    Both libraries fill weights that a file lacks with random numbers and continue. Here that is an error, and so are
    truncated files and files that do not fit the configuration.

    Args:
        folder: The checkpoint.
        part: Folder of the part in it.
        model_class: Class of the model, with `from_pretrained`.
        unused: Beginnings of the names of weights that may be missing.
        options: Further arguments of `from_pretrained`.

    Raises:
        CheckpointError: A file cannot be loaded, or a weight is missing.
    """
    try:
        model, report = model_class.from_pretrained(
            folder, subfolder=part, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{part} of {folder}: its files do not load: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise CheckpointError(f"{part} of {folder}: its files lack weights: {missing[0]} is one of {len(missing)}")
    return model
