"""Where a model's files are on this node. Those of a URL are copied to it once, for all its workers, and kept.

    CACHE/sd15-<digest of the URL>/lock           held by the process that copies; it goes with it
    CACHE/sd15-…/<digest of the listing>/…        a copy: the files that are read, by their paths below the URL
    CACHE/sd15-…/<digest of the listing>/record.json   its URL and the sha256 of each file; written last, so that
                                                       without it a copy is none

The listing names each file's size and version, so a checkpoint that was changed in its store is another copy. The files
are hashed whenever a worker starts; a copy that differs from its record is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import is_offline_mode

from diffseg.model.files import (
    CHECKPOINT_FILES,
    CLIP_FILES,
    VAE_FILES,
    ModelFiles,
    digests,
    fingerprint,
    with_digest,
)
from diffseg.model.layout import CheckpointError, resolve
from pipeline.digest import short_digest
from pipeline.settings import LabelSettings
from pipeline.storage import Storage, StoreUnavailable, redact
from pipeline.storage.atomic_write import write_atomically
from pipeline.storage.locks import locked
from pipeline.storage.urls import local_path, scheme, split_url

if TYPE_CHECKING:
    from diffseg.affinity.state import AffinityState

log = logging.getLogger(__name__)

CACHE = "DIFFSEG_CACHE"
MOST_FILES, MOST_BYTES = 1000, 2**36
"""Of one checkpoint. SDXL in single and half precision is 21 GB."""
_TRIES = 2
_RECORD = "record.json"

Versions = dict[str, tuple[int, str]]
"""What a store says of a checkpoint's files: size in bytes and a text that changes with the content, by path."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The folders on this node of a model, of the autoencoder in the place of its own and of a CLIP beside it, and what
    the user named.
    """

    settings: LabelSettings
    model: Path
    vae: Path | None
    clip: Path | None = None

    def fingerprint(self) -> str:
        """The model_sha256 of run.json: of contents alone, wherever they lie."""
        own = fingerprint(self.model, vae=self.vae)
        return own if self.clip is None else with_digest(own, fingerprint(self.clip, CLIP_FILES))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within, a CheckpointError names what the user did, not a folder of a cache."""
        try:
            yield
        except CheckpointError as error:
            text = str(error)
            for part in ("clip", "vae", "model"):
                text = text.replace(str(getattr(self, part)), str(getattr(self.settings, part)))
            raise CheckpointError(text) from error


def find_weights(settings: LabelSettings, source: Storage) -> Weights:
    """The files of a run's model on this node; those of a URL or hub id are fetched if they are not there yet.

    source: how the stores of URLs are reached. Raises CheckpointError naming the URL and what was looked for, OSError
    where a store fails and SourceError where it cannot be opened. Imports no torch.
    """
    model = _located(settings.model, settings.revision, source, CHECKPOINT_FILES)
    vae = None if settings.vae is None else _located(settings.vae, None, source, VAE_FILES)
    clip = None if settings.clip is None else _located(settings.clip, None, source, CLIP_FILES)
    return Weights(settings=settings, model=model, vae=vae, clip=clip)


def find_affinity(place: str, source: Storage) -> AffinityState:
    """What `diffseg fit` wrote at a path or URL. Raises AffinityError (a ValueError) where it is something else."""
    from diffseg.affinity.state import AffinityError, read_state

    folder, name = split_url(place)
    try:
        return read_state(source.at(folder).read_bytes(name), redact(place))
    except FileNotFoundError:
        raise AffinityError(f"{redact(place)}: is not there; `diffseg fit` writes such a file") from None


def _located(name: str, revision: str | None, source: Storage, files: ModelFiles) -> Path:
    if not scheme(name):
        return resolve(local_path(name), revision, files)
    store, root = source.at(name), cache_folder()
    place = re.sub(r"[^\w-]", "_", store.url.rpartition("/")[2])[:50]
    digest = short_digest("\0".join((store.url, *files.patterns)))
    copies = _Copies(store=store, files=files, folder=root / f"{place}-{digest}")
    try:
        return copies.latest() if is_offline_mode() else copies.current()
    except OSError as error:
        if error.errno is None:  # of a store: Storage's errors have no number, and name the URL themselves
            raise
        raise CheckpointError(
            f"{root}: cannot keep a copy of {store.redacted} ({error}). Let {CACHE} name a folder on this node that "
            "can be written to and has room"
        ) from error


def cache_folder() -> Path:
    """DIFFSEG_CACHE, else diffseg in XDG_CACHE_HOME or ~/.cache. Raises CheckpointError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get(CACHE) or f"{base}/diffseg").expanduser().absolute()
    except RuntimeError as error:
        raise CheckpointError(f"no folder for copies of models: {error}; let {CACHE} name one") from error


@dataclass(frozen=True, kw_only=True)
class _Copies:
    """What this node has of one URL. Errors: local ones are OSErrors with a number, those of the store have none."""

    store: Storage
    files: ModelFiles
    folder: Path

    def current(self) -> Path:
        """The copy of what the store holds now, made if need be; the latest there is where the store is away."""
        for _ in range(_TRIES):
            try:
                versions = self._listed()
            except StoreUnavailable as error:
                log.warning("%s; a copy of earlier is used if there is one", error)
                return self.latest(error)
            copy = self.folder / short_digest(json.dumps(versions, sort_keys=True))
            if _record(copy) is None:
                self._fetch(copy, versions)
            if (record := _record(copy)) is None:
                log.warning("%s: was changed while it was copied; it is copied again", self.store.redacted)
            elif damaged := _damaged(copy, record, self.files):
                log.warning("%s: the copy of %s is damaged; it is made again", copy / damaged[0], self.store.redacted)
                self._discard(copy, record)
            else:
                with suppress(OSError):  # a cache that is only to be read
                    os.utime(copy / _RECORD)  # the latest to agree with the store is what `latest` takes
                return copy
        raise CheckpointError(
            f"{self.store.redacted}: no whole copy in {self.folder} after {_TRIES} tries: the checkpoint changes, or "
            "the disk does not keep what is written"
        )

    def latest(self, otherwise: StoreUnavailable | None = None) -> Path:
        """The copy that the store had last agreed with, without asking it. Raises `otherwise` where there is none."""
        copies = sorted(self.folder.glob(f"*/{_RECORD}"), key=lambda path: path.stat().st_mtime)
        for copy in (path.parent for path in reversed(copies)):
            if (record := _record(copy)) is not None and not _damaged(copy, record, self.files):
                return copy
            log.warning(
                "%s: the copy of %s is damaged; an older one is used if there is one", copy, self.store.redacted
            )
        raise otherwise or CheckpointError(
            f"{self.store.redacted}: HF_HUB_OFFLINE is set, so it is not asked for, and there is no whole copy in "
            f"{self.folder}. Without that variable the copy is made"
        )

    def _listed(self) -> Versions:
        """Of the files that are needed. A URL that holds no checkpoint is told from one by a question or two."""
        files = self.files
        configs = {folder: f"{folder}/config.json" if folder else "config.json" for folder in files.main_folders}
        main_folder = next((folder for folder, path in configs.items() if self.store.is_file(path)), None)
        if main_folder is None:
            example = f" ({files.example})" if files.example else ""
            raise CheckpointError(
                f"{self.store.redacted}: looked for {' or '.join(configs.values())}; there is "
                f"none. A folder in the {files.library} layout is needed{example}"
            )
        here = f"{main_folder}/" if main_folder else ""
        found = {path: (size, tag) for path, size, tag in self.store.versions(depth=2) if files.includes(path)}
        if not any(path.startswith(here) and path.endswith(".safetensors") for path in found):
            raise CheckpointError(
                f"{self.store.redacted}: looked for {here}{files.weights}.safetensors (or .fp16.safetensors); "
                "found none. Only safetensors are loaded: pickled .bin and .ckpt files can run code"
            )
        size = sum(size for size, _ in found.values())
        if len(found) > MOST_FILES or size > MOST_BYTES:
            raise CheckpointError(
                f"{self.store.redacted}: {len(found)} files of {size / 1e9:.1f} GB match {', '.join(files.patterns)}; "
                f"a checkpoint has at most {MOST_FILES} of {MOST_BYTES / 1e9:.0f} GB"
            )
        return found

    def _fetch(self, copy: Path, versions: Versions) -> None:
        """Make the copy unless another process has; without a record where the store's files changed meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            if _record(copy) is not None:
                return
            for left in self.folder.iterdir():  # by a process that was killed
                if left.is_dir() and _record(left) is None:
                    shutil.rmtree(left)
            log.info("%s: %d files, %d bytes", self.store.redacted, len(versions), sum(s for s, _ in versions.values()))
            files = {path: self._fetch_file(path, copy / path) for path in sorted(versions)}
            if self._listed() == versions:
                record = {"url": self.store.redacted, "files": files, "finished": time.time()}
                write_atomically(str(copy / _RECORD), json.dumps(record, indent=1).encode())

    def _fetch_file(self, path: str, target: Path) -> str:
        """Copy a file; its sha256."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.store.open(path) as source, target.open("xb") as file:
            while block := source.read(2**20):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    def _discard(self, copy: Path, record: dict[str, Any]) -> None:
        with locked(self.folder / "lock"):
            if _record(copy) == record:  # not one that another process has made meanwhile
                (copy / _RECORD).unlink()


def _record(copy: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((copy / _RECORD).read_bytes())
        return record if isinstance(record["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged(copy: Path, record: dict[str, Any], files: ModelFiles) -> list[str]:
    """The files that are not as they were written."""
    try:
        found = digests(copy, files)
    except OSError as error:  # of the disk, or another process has found the damage and is making the copy again
        return [str(error.filename)]
    return sorted(
        path for path in found.keys() | record["files"].keys() if found.get(path) != record["files"].get(path)
    )
