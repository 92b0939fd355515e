"""Finds the files of a run's model on this node: a local folder, the cache of the hub, or a copy of a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import is_offline_mode

from diffseg.model.files import (
    CLIP_FILES,
    OPEN_CLIP_FILES,
    VAE_FILES,
    ModelFiles,
    clip_files,
    fingerprint,
    with_digest,
)
from diffseg.model.layout import CheckpointError, resolve, resolve_clip
from diffseg.settings import Dtype
from pipeline.checkpoint_cache import CheckpointCache
from pipeline.digest import short_digest
from pipeline.settings import LabelSettings
from pipeline.storage import Storage, redact
from pipeline.storage.urls import local_path, scheme, split_url

if TYPE_CHECKING:
    from diffseg.affinity.state import AffinityState

CACHE = "DIFFSEG_CACHE"
"""Environment variable that names the folder for copies of models."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The folders of a model on this node.

    Attributes:
        settings: The settings, which hold the locations as the user gave them.
        model: The checkpoint.
        vae: The autoencoder that replaces the checkpoint's own, if any.
        clip: The CLIP that names segments, if any.
    """

    settings: LabelSettings
    model: Path
    vae: Path | None
    clip: Path | None = None

    def fingerprint(self) -> str:
        """Return the model_sha256 of run.json, which depends on the contents of the files and not on their location."""
        settings = self.settings
        checkpoint = fingerprint(self.model, settings.model_files, vae=self.vae, dtype=settings.known_dtype)
        return (
            checkpoint if self.clip is None else with_digest(checkpoint, fingerprint(self.clip, clip_files(self.clip)))
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Make a CheckpointError in the block name the location that the user gave instead of a folder of the cache."""
        try:
            yield
        except CheckpointError as error:
            text = str(error)
            for part in ("clip", "vae", "model"):
                text = text.replace(str(getattr(self, part)), str(getattr(self.settings, part)))
            raise CheckpointError(text) from error


def find_weights(settings: LabelSettings, source: Storage) -> Weights:
    """Find the files of a run's model on this node, and fetch those of a URL or hub id. Imports no torch.

    Args:
        settings: The settings of the run.
        source: Options for the stores of URLs.

    Raises:
        CheckpointError: Something is missing; the message names the location and what was looked for.
        SourceError: A store cannot be opened.
        OSError: A store fails.
    """
    dtype = settings.known_dtype
    model = _locate(settings.model, settings.revision, source, settings.model_files, dtype)
    vae = None if settings.vae is None else _locate(settings.vae, None, source, VAE_FILES, dtype)
    clip = None if settings.clip is None else _locate_clip(settings.clip, source)
    return Weights(settings=settings, model=model, vae=vae, clip=clip)


def find_affinity(location: str, source: Storage) -> AffinityState:
    """Read what `diffseg fit` wrote at a path or URL. Raises AffinityError (a ValueError) if it is something else."""
    from diffseg.affinity.state import AffinityError, read_state

    folder, name = split_url(location)
    try:
        return read_state(source.at(folder).read_bytes(name), redact(location))
    except FileNotFoundError:
        raise AffinityError(f"{redact(location)}: there is no such file; `diffseg fit` writes one") from None


def _locate_clip(name: str, source: Storage) -> Path:
    """Return the local folder of a CLIP in the layout of transformers or, failing that, of open_clip."""
    if not scheme(name):
        return resolve_clip(local_path(name))
    try:
        return _locate(name, None, source, CLIP_FILES, "float32")
    except CheckpointError as not_transformers:
        try:
            return _locate(name, None, source, OPEN_CLIP_FILES, "float32")
        except CheckpointError:
            raise not_transformers from None


def _locate(name: str, revision: str | None, source: Storage, files: ModelFiles, dtype: Dtype) -> Path:
    """Return the local folder or single file of a local path, a hub id or a URL."""
    if not scheme(name):
        return resolve(local_path(name), revision, files, dtype)
    if name.endswith((".safetensors", ".ckpt")):
        raise CheckpointError(
            f"{redact(name)}: a single file is read only from a disk of each node; copy it there, or give the URL of a "
            "folder in the diffusers layout"
        )
    store, root = source.at(name), cache_folder()
    readable = re.sub(r"[^\w-]", "_", store.url.rpartition("/")[2])[:50]
    digest = short_digest("\0".join((store.url, dtype, *files.patterns)))
    cache = CheckpointCache(store=store, files=files, folder=root / f"{readable}-{digest}", dtype=dtype)
    try:
        return cache.latest() if is_offline_mode() else cache.current()
    except OSError as error:
        if error.errno is None:  # an error of the store, whose message names the URL
            raise
        raise CheckpointError(
            f"{root}: cannot keep a copy of {store.redacted} ({error}). Set {CACHE} to a folder on this node that is "
            "writable and has enough space"
        ) from error


def cache_folder() -> Path:
    """Return DIFFSEG_CACHE, else diffseg in XDG_CACHE_HOME or in ~/.cache. Raises CheckpointError without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get(CACHE) or f"{base}/diffseg").expanduser().absolute()
    except RuntimeError as error:
        raise CheckpointError(f"there is no folder for copies of models ({error}); set {CACHE} to one") from error
