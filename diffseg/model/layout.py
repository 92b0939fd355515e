"""Locate the folder of a model, check its files, and load them completely.

Only safetensors are loaded, and no remote code is run.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files, snapshot_download

from diffseg.model.files import CHECKPOINT_FILES, CLIP_FILES, GENERATING_FILES, OPEN_CLIP_FILES, ModelFiles, Part
from diffseg.settings import Dtype

TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"
"""Folder of the embedded model `tiny`."""

EMBEDDED = {"tiny": TINY, "tiny-text": TINY.with_name("text-checkpoint")}
"""Folders of the checkpoints that this package includes; `tiny-text` reads text."""


MAX_CONFIG_BYTES = 2**20
"""Largest JSON file of a checkpoint that is read. The longest in a published checkpoint have some kilobytes."""

CONVERT_CKPT = (
    "import sys, torch; from safetensors.torch import save_file; "
    'w = torch.load(sys.argv[1], map_location="cpu", weights_only=True); w = w.get("state_dict", w); '
    "save_file({k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, sys.argv[2])"
)
"""Python that converts a pickled checkpoint without running code from it, as `weights_only` ensures."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message names the part, what was expected and what was found."""


def resolve(
    model: str | os.PathLike[str],
    revision: str | None = None,
    files: ModelFiles = CHECKPOINT_FILES,
    dtype: Dtype = "float32",
) -> Path:
    """Return the local folder of a model, or its single file.

    Args:
        model: An embedded model, a local folder, a checkpoint in a single .safetensors file, or a hub id, of which only
            the files that are read are downloaded.
        revision: Branch, tag or commit of the hub id.
        files: The kind of model.
        dtype: Dtype of the run, on which depends which files of weights are read.

    Raises:
        CheckpointError: There is no such folder or repository, or the file is of another kind.
    """
    if str(model) in EMBEDDED:
        return EMBEDDED[str(model)]
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        check_single_file(path.name, str(model), files)
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(model)) or path.suffix in (".ckpt", ".safetensors"):
        raise CheckpointError(
            f"{model}: no such file or folder, and not a hub id (owner/name); the embedded models are "
            f"{' and '.join(EMBEDDED)}"
        )
    patterns = list(files.patterns)
    try:
        names = list_repo_files(str(model), revision=revision)
        patterns = [glob.escape(name) for name in files.select(names, dtype)]
    except (OSError, ValueError):  # offline; where nothing was downloaded before, the next call reports it
        pass
    try:
        folder = snapshot_download(str(model), revision=revision, allow_patterns=patterns)
    except (OSError, ValueError) as error:  # raised offline, and for missing, private and gated repositories
        raise CheckpointError(
            f"{model}: no such folder here, and no such repository could be downloaded from the hub"
            f"{f' at revision {revision}' if revision else ''}: {error}"
        ) from error
    return Path(folder)


def resolve_clip(model: str | os.PathLike[str]) -> Path:
    """Return the local folder of a CLIP in the layout of transformers or, failing that, of open_clip.

    Args:
        model: A local folder or a hub id, of which only the files of one of the two layouts are downloaded.

    Raises:
        CheckpointError: There is no such folder or repository.
    """
    folder = resolve(model, files=CLIP_FILES)
    has_weights = CLIP_FILES.part("").has_weights(path.name for path in folder.glob("*"))
    return folder if has_weights or Path(model).expanduser().is_dir() else resolve(model, files=OPEN_CLIP_FILES)


def check_single_file(name: str, shown: str, files: ModelFiles = CHECKPOINT_FILES) -> None:
    """Check by its name that a file may be a checkpoint in a single file.

    Raises:
        CheckpointError: It is pickled, of another kind, or not a whole checkpoint; the message names it as `shown`.
    """
    base, suffix = os.path.splitext(name)
    is_checkpoint = files in (CHECKPOINT_FILES, GENERATING_FILES)
    if suffix in (".ckpt", ".pt", ".pth", ".bin"):
        line = shlex.join(["python", "-c", CONVERT_CKPT, name, f"{base}.safetensors"])
        raise CheckpointError(
            f"{shown}: is pickled, and pickled files can run code. Convert it once, which runs none of it, in its "
            f"folder: {line}"
        )
    if suffix != ".safetensors" or not is_checkpoint:
        raise CheckpointError(
            f"{shown}: is a file; a folder in the {files.library} layout is needed"
            f"{f' ({files.example})' if files.example else ''}"
            f"{', or a checkpoint in a single .safetensors file' if is_checkpoint else ''}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or is not JSON; the message names it.
    """
    try:
        if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: has {size} bytes; at most {MAX_CONFIG_BYTES} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected an object")
    return content


def check_part(folder: Path, part: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """Check that a part of a checkpoint has a configuration of an expected class, and return the configuration.

    Args:
        folder: The checkpoint.
        part: Folder of the part in it: unet, vae, or empty.
        classes: Names of the classes that can be loaded.

    Raises:
        CheckpointError: The part is missing or is of another class.
    """
    path = folder / part / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{part} of {folder}: looked for {part}/config.json; the folder holds {listing(folder)}")
    config = read_json(path)
    if config.get("_class_name") not in classes:
        raise CheckpointError(
            f"{part} of {folder}: is a {config.get('_class_name')}; looked for {' or '.join(classes)}"
        )
    return config


def weights_variant(folder: Path, shown: str, part: Part, dtype: Dtype) -> str | None:
    """Return the variant of a part's weights to load, None for that without a name.

    Args:
        folder: Folder of the part.
        shown: How messages name the part.
        part: Which files the part has.
        dtype: Dtype of the run.

    Raises:
        CheckpointError: The part has no safetensors, or its index names a file that is not one of its shards.
    """
    names = [path.name for path in folder.glob("*") if path.is_file()]
    if not part.has_weights(names):
        raise CheckpointError(
            f"{shown}: looked for {part.weights}.safetensors (or .fp16.safetensors); found {listing(folder)}. Only "
            "safetensors are loaded: pickled .bin and .ckpt files can run code"
        )
    selected = part.select(names, dtype)
    for name in selected:
        if ".safetensors.index" in name:
            _check_index(folder / name, selected)
    return part.variant(names, dtype)


def _check_index(path: Path, selected: Iterable[str]) -> None:
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not set(map(str, shards.values())) <= set(selected):
        raise CheckpointError(f"{path}: its weight_map names files that are not shards of these weights in its folder")


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
    except MemoryError:
        raise
    except Exception as error:  # a configuration with wrong values raises errors of any class while a model is built
        raise CheckpointError(f"{part} of {folder}: its files do not load: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise CheckpointError(f"{part} of {folder}: its files lack weights: {missing[0]} is one of {len(missing)}")
    return model
