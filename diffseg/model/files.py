"""Which files of a checkpoint, of an autoencoder and of a CLIP are read, and their digests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

UNUSED = "*.non_ema.*"
"""Pattern of files that are never read: a second set of weights, which some repositories hold beside the one to use."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files of one part of a model.

    Attributes:
        folder: The part's folder below the model's, which may be a pattern; empty for the model's own folder.
        files: Patterns of the names of the files that are read, as for `fnmatch`.
    """

    folder: str = ""
    files: tuple[str, ...]

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the paths of the files below the model's folder."""
        return tuple(f"{self.folder}/{name}" if self.folder else name for name in self.files)


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files that are read of one kind of model, and what a folder of that kind must hold.

    Attributes:
        library: The library whose layout this is.
        parts: The parts of the model.
        main_folders: Folders below the model's, one of which must hold config.json and weights; "" is its own folder.
        weights: Name of the file of weights, without its extension.
        example: Folders and files that a message names as an example of the layout.
    """

    library: str
    parts: tuple[Part, ...]
    main_folders: tuple[str, ...]
    weights: str
    example: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the paths of all files that are read, with `/` between the parts of a path."""
        return tuple(pattern for part in self.parts for pattern in part.patterns)

    def includes(self, path: str) -> bool:
        """Return whether the file at a path below the model's folder is read.

        A path that leads out of the folder, or that is not the name of a file, never is.
        """
        names = path.split("/")
        if any(name in ("", ".", "..") or "\0" in name for name in names) or fnmatchcase(names[-1], UNUSED):
            return False
        patterns = (pattern.split("/") for pattern in self.patterns)
        return any(len(p) == len(names) and all(map(fnmatchcase, names, p)) for p in patterns)


_CONFIG_AND_WEIGHTS = ("config.json", "*.safetensors*")
_AUTOENCODER = ("config.json", "diffusion_pytorch_model*.safetensors*")
_DIFFUSERS_EXAMPLE = "unet/, vae/, …"

CHECKPOINT_FILES = ModelFiles(
    library="diffusers",
    parts=(
        Part(files=("model_index.json", "diffseg.json")),
        *(Part(folder=folder, files=_CONFIG_AND_WEIGHTS) for folder in ("vae", "unet", "text_encoder*")),
        Part(folder="tokenizer*", files=("*",)),
    ),
    main_folders=("unet",),
    weights="diffusion_pytorch_model",
    example=_DIFFUSERS_EXAMPLE,
)
"""A Stable Diffusion checkpoint."""

VAE_FILES = ModelFiles(
    library="diffusers",
    parts=(Part(files=_AUTOENCODER), Part(folder="vae", files=_AUTOENCODER)),
    main_folders=("", "vae"),
    weights="diffusion_pytorch_model",
    example=_DIFFUSERS_EXAMPLE,
)
"""An autoencoder of its own, or the one of a checkpoint."""

CLIP_FILES = ModelFiles(
    library="transformers",
    parts=(
        Part(
            files=(
                *("config.json", "preprocessor_config.json", "model*.safetensors", "model*.safetensors.index*.json"),
                *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
            )
        ),
    ),
    main_folders=("",),
    weights="model",
)
"""A CLIP."""


def digests(folder: Path, files: ModelFiles = CHECKPOINT_FILES) -> dict[str, str]:
    """Return the sha256, in hexadecimal, of each file that is read, by its path with `/`, in sorted order."""
    paths = {path for pattern in files.patterns for path in folder.glob(pattern)}
    sha256: dict[str, str] = {}
    for path in sorted(path for path in paths if path.is_file() and not path.match(UNUSED)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
        sha256[path.relative_to(folder).as_posix()] = content.hexdigest()
    return sha256


def fingerprint(folder: Path, files: ModelFiles = CHECKPOINT_FILES, *, vae: Path | None = None) -> str:
    """Return the sha256, in hexadecimal, over the names and contents of the files that are read.

    Args:
        folder: The model's folder.
        files: The kind of model.
        vae: Folder of an autoencoder that replaces the model's own. Its files then count as well.
    """
    lines = (f"{path}\0{digest}\n" for path, digest in digests(folder, files).items())
    of_model = hashlib.sha256("".join(lines).encode()).hexdigest()
    return of_model if vae is None else with_digest(of_model, fingerprint(vae, VAE_FILES))


def with_digest(of_model: str, of_addition: str) -> str:
    """Return the sha256, in hexadecimal, over the digest of a model and the digest of a model that is used with it."""
    return hashlib.sha256(f"{of_model} {of_addition}".encode()).hexdigest()


def _digest(file: Any) -> Any:  # hashlib.file_digest is new in Python 3.11
    content = hashlib.sha256()
    while block := file.read(2**20):
        content.update(block)
    return content
