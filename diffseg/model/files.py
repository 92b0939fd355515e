"""Which files of a checkpoint, of an autoencoder and of a CLIP are read, and their digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from diffseg.settings import Dtype

WEIGHTS_NAME = re.compile(
    r"(?:\.(?P<a>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<b>\w+))?\.safetensors(?P<index>\.index(?:\.(?P<c>\w+))?\.json)?"
)
"""Name of a file of weights after its stem, as diffusers and transformers write it: `.fp16.safetensors`,
`-00001-of-00002.fp16.safetensors`, `.safetensors.index.fp16.json`. a, b or c is the variant."""

VARIANTS: Mapping[Dtype, tuple[str | None, ...]] = {
    "float32": (None, "fp32", "fp16", "bf16"),
    "float16": ("fp16", None, "fp32", "bf16"),
    "bfloat16": ("bf16", None, "fp32", "fp16"),
}
"""Variants of the weights that are read for each dtype of a run, best first. None stands for names without a variant,
which hold float32 where there are others. Rounding float32 to bfloat16 loses less than converting float16."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files of one part of a model.

    Attributes:
        folder: The part's folder below the model's; empty for the model's own folder.
        files: Patterns of the names of the files that are read beside the weights, as for `fnmatch`.
        weights: Name of the file of weights, without variant and extension; empty if the part has no weights.
    """

    folder: str = ""
    files: tuple[str, ...]
    weights: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the paths of the files below the model's folder."""
        names = (*self.files, f"{self.weights}*.safetensors*") if self.weights else self.files
        return tuple(f"{self.folder}/{name}" if self.folder else name for name in names)

    def select(self, names: Iterable[str], dtype: Dtype = "float32") -> list[str]:
        """Return the names of the files that are read, of those in the part's folder: one variant of the weights."""
        names = list(names)
        variant = self.variant(names, dtype)
        read = [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.files)]
        return read + [name for name in names if self._weights(name) and self._variant(name) == variant]

    def variant(self, names: Iterable[str], dtype: Dtype = "float32") -> str | None:
        """Return the variant of the weights that is read, None for that without a name.

        Args:
            names: Names of all files in the part's folder.
            dtype: Dtype of the run.
        """
        matches = {name: self._weights(name) for name in names}
        whole = {self._variant(name) for name, match in matches.items() if match and not _is_shard(name)}
        return next((variant for variant in VARIANTS[dtype] if variant in whole), None)

    def has_weights(self, names: Iterable[str]) -> bool:
        """Return whether the files in the part's folder include weights of a variant that can be read."""
        names = list(names)
        variant = self.variant(names)
        return any(self._weights(name) and not _is_shard(name) and self._variant(name) == variant for name in names)

    def _weights(self, name: str) -> re.Match[str] | None:
        if not self.weights or not name.startswith(self.weights):
            return None
        return WEIGHTS_NAME.fullmatch(name.removeprefix(self.weights))

    def _variant(self, name: str) -> str | None:
        match = self._weights(name)
        return None if match is None else match["a"] or match["b"] or match["c"]


def _is_shard(name: str) -> bool:
    """Return whether a file holds some of the weights and is listed in an index."""
    return re.search(r"-\d+-of-\d+[.\w]*\.safetensors$", name) is not None


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files that are read of one kind of model, and what a folder of that kind must hold.

    Attributes:
        library: The library whose layout this is.
        parts: The parts of the model.
        main_folders: Folders below the model's, one of which must hold a configuration and weights; "" is its own.
        example: Folders and files that a message names as an example of the layout.
        config: Name of the configuration in a main folder.
    """

    library: str
    parts: tuple[Part, ...]
    main_folders: tuple[str, ...]
    example: str = ""
    config: str = "config.json"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the paths of all files that may be read, with `/` between the parts of a path."""
        return tuple(pattern for part in self.parts for pattern in part.patterns)

    def part(self, folder: str) -> Part:
        """Return the part in a folder that has weights."""
        return next(part for part in self.parts if part.folder == folder and part.weights)

    def select(self, paths: Iterable[str], dtype: Dtype = "float32") -> list[str]:
        """Return which files are read, in sorted order.

        Of the weights of each part only one variant is read, the one that suits the dtype best. A path that leads out
        of the model's folder, or that is not the name of a file, is never read.

        Args:
            paths: Paths of all files below the model's folder, with `/`.
            dtype: Dtype of the run.
        """
        names_of_folder: dict[str, list[str]] = {}
        for path in paths:
            folder, _, name = path.rpartition("/")
            if name not in ("", ".", "..") and "\0" not in name:
                names_of_folder.setdefault(folder, []).append(name)
        return sorted(
            f"{part.folder}/{name}" if part.folder else name
            for part in self.parts
            for name in part.select(names_of_folder.get(part.folder, ()), dtype)
        )


_DIFFUSERS_WEIGHTS, _TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model", "model"
_DIFFUSERS_EXAMPLE = "unet/, vae/, …"


def _parts(weights: str, *folders: str) -> tuple[Part, ...]:
    return tuple(Part(folder=folder, files=("config.json",), weights=weights) for folder in folders)


CHECKPOINT_FILES = ModelFiles(
    library="diffusers",
    parts=(
        Part(files=("model_index.json", "diffseg.json")),
        *_parts(_DIFFUSERS_WEIGHTS, "vae", "unet"),
        *_parts(_TRANSFORMERS_WEIGHTS, "text_encoder", "text_encoder_2"),
        *(Part(folder=folder, files=("*",)) for folder in ("tokenizer", "tokenizer_2")),
    ),
    main_folders=("unet",),
    example=_DIFFUSERS_EXAMPLE,
)
"""A Stable Diffusion checkpoint."""

GENERATING_FILES = replace(
    CHECKPOINT_FILES,
    parts=(*CHECKPOINT_FILES.parts, Part(folder="scheduler", files=("scheduler_config.json",))),
)
"""A Stable Diffusion checkpoint that generates images, for which it also needs its noise schedule."""

TEXT_FILES = ModelFiles(
    library="diffusers",
    parts=(
        Part(files=("model_index.json",)),
        *_parts(_TRANSFORMERS_WEIGHTS, "text_encoder"),
        Part(folder="tokenizer", files=("*",)),
    ),
    main_folders=("text_encoder",),
    example="text_encoder/, tokenizer/, …",
)
"""The first text encoder of a Stable Diffusion checkpoint."""

VAE_FILES = ModelFiles(
    library="diffusers",
    parts=_parts(_DIFFUSERS_WEIGHTS, "", "vae"),
    main_folders=("", "vae"),
    example=_DIFFUSERS_EXAMPLE,
)
"""An autoencoder of its own, or the one of a checkpoint."""

_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
CLIP_FILES = ModelFiles(
    library="transformers",
    parts=(
        Part(
            files=("config.json", "preprocessor_config.json", *_TOKENIZER, "spiece.model"),
            weights=_TRANSFORMERS_WEIGHTS,
        ),
    ),
    main_folders=("",),
)
"""A CLIP or SigLIP of transformers."""

OPEN_CLIP_FILES = ModelFiles(
    library="open_clip",
    parts=(Part(files=("open_clip_config.json", *_TOKENIZER), weights="open_clip_model"),),
    main_folders=("",),
    config="open_clip_config.json",
)
"""A CLIP of open_clip."""


def clip_files(folder: Path) -> ModelFiles:
    """Return which files of a CLIP's folder are read: those of transformers unless only open_clip has weights there."""
    names = [path.name for path in folder.glob("*")]
    only_open_clip = OPEN_CLIP_FILES.config in names and not CLIP_FILES.part("").has_weights(names)
    return OPEN_CLIP_FILES if only_open_clip else CLIP_FILES


def digests(folder: Path, files: ModelFiles = CHECKPOINT_FILES, dtype: Dtype = "float32") -> dict[str, str]:
    """Return the sha256, in hexadecimal, of each file that is read, by its path with `/`, in sorted order."""
    present = {path for pattern in files.patterns for path in folder.glob(pattern) if path.is_file()}
    paths = files.select((path.relative_to(folder).as_posix() for path in present), dtype)
    return {path: sha256_of(folder / path) for path in paths}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return content.hexdigest()


def fingerprint(
    folder: Path, files: ModelFiles = CHECKPOINT_FILES, *, vae: Path | None = None, dtype: Dtype = "float32"
) -> str:
    """Return the sha256, in hexadecimal, over the names and contents of the files that are read.

    Args:
        folder: The model's folder, or a single file, whose digest is then simply that of its content.
        files: The kind of model.
        vae: Folder of an autoencoder that replaces the model's own. Its files then count as well.
        dtype: Dtype of the run, on which depends which files of weights are read.
    """
    if folder.is_file():
        of_model = sha256_of(folder)
    else:
        lines = (f"{path}\0{digest}\n" for path, digest in digests(folder, files, dtype).items())
        of_model = hashlib.sha256("".join(lines).encode()).hexdigest()
    return of_model if vae is None else with_digest(of_model, fingerprint(vae, VAE_FILES, dtype=dtype))


def with_digest(of_model: str, of_addition: str) -> str:
    """Return the sha256, in hexadecimal, over the digest of a model and the digest of a model that is used with it."""
    return hashlib.sha256(f"{of_model} {of_addition}".encode()).hexdigest()


def _digest(file: Any) -> Any:  # hashlib.file_digest is new in Python 3.11
    content = hashlib.sha256()
    while block := file.read(2**20):
        content.update(block)
    return content
