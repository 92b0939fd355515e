"""Copies of a checkpoint in a store: made once on each node, for all its workers, and kept.

    CACHE/sd15-<digest of the URL>/lock                 held by the process that copies; it is released if that dies
    CACHE/sd15-…/<digest of the listing>/…              one copy: the files that are read, by their paths below the URL
    CACHE/sd15-…/<digest of the listing>/record.json    URL and sha256 of each file, written last: a copy without it
                                                        is incomplete

The listing holds each file's size and version, so a checkpoint that changes in its store gets another copy. The files
are hashed whenever a worker starts, and a copy that differs from its record is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg.model.files import ModelFiles, digests
from diffseg.model.layout import CheckpointError
from diffseg.settings import Dtype
from pipeline.digest import BLOCK_BYTES, short_digest
from pipeline.storage import Storage, StoreUnavailable
from pipeline.storage.atomic_write import write_atomically
from pipeline.storage.locks import locked

log = logging.getLogger(__name__)

MAX_FILES = 1000
"""Most files of one checkpoint."""
MAX_BYTES = 2**36
"""Largest size of one checkpoint. SDXL in single precision is 14 GB."""
MAX_TRIES = 2
RECORD = "record.json"

Versions = dict[str, tuple[int, str]]
"""Size in bytes, and a text that changes with the content, of each file of a checkpoint by its path in the store."""


@dataclass(frozen=True, kw_only=True)
class CheckpointCache:
    """The copies of one URL on this node.

    An error of the local file system is an OSError with an errno; errors of the store have none.

    Attributes:
        store: The URL.
        files: Which files are copied, and what must be among them.
        folder: Folder of the copies.
        dtype: Dtype of the run, on which depends which files of weights are read.
    """

    store: Storage
    files: ModelFiles
    folder: Path
    dtype: Dtype = "float32"

    def current(self) -> Path:
        """Return the copy of what the store holds now, and make it if there is none.

        If the store does not answer, the result is that of `latest`.

        Raises:
            CheckpointError: The URL holds no checkpoint, or no complete copy could be made.
            OSError: The store or the local file system fails.
        """
        for _ in range(MAX_TRIES):
            try:
                versions = self._list()
            except StoreUnavailable as error:
                log.warning("%s; an earlier copy is used if there is one", error)
                return self.latest(error)
            copy = self.folder / short_digest(json.dumps(versions, sort_keys=True))
            if _read_record(copy) is None:
                self._fetch(copy, versions)
            if (record := _read_record(copy)) is None:
                log.warning("%s: changed while it was copied; it is copied again", self.store.redacted)
            elif damaged := _damaged_files(copy, record, self.files, self.dtype):
                url = self.store.redacted
                log.warning("%s: the copy of %s is damaged; it is copied again", copy / damaged[0], url)
                self._discard(copy, record)
            else:
                with suppress(OSError):  # the cache may be read-only
                    os.utime(copy / RECORD)  # `latest` chooses by the time at which a copy last agreed with the store
                return copy
        raise CheckpointError(
            f"{self.store.redacted}: no complete copy in {self.folder} after {MAX_TRIES} tries: the checkpoint keeps "
            "changing, or the disk does not keep what is written"
        )

    def latest(self, reason: StoreUnavailable | None = None) -> Path:
        """Return the copy that last agreed with the store, without contacting the store.

        Args:
            reason: Raised if there is no complete copy; None for a CheckpointError about HF_HUB_OFFLINE.
        """
        records = sorted(self.folder.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        for copy in (path.parent for path in reversed(records)):
            if (record := _read_record(copy)) is not None and not _damaged_files(copy, record, self.files, self.dtype):
                return copy
            log.warning(
                "%s: the copy of %s is damaged; an older one is used if there is one", copy, self.store.redacted
            )
        raise reason or CheckpointError(
            f"{self.store.redacted}: HF_HUB_OFFLINE is set, so the store is not contacted, and there is no complete "
            f"copy in {self.folder}. Unset that variable to make one"
        )

    def _list(self) -> Versions:
        """List the files to copy.

        One or two requests find out whether the URL holds a checkpoint at all, before a listing that could be huge.
        """
        files = self.files
        configs = {folder: f"{folder}/{files.config}" if folder else files.config for folder in files.main_folders}
        main_folder = next((folder for folder, path in configs.items() if self.store.is_file(path)), None)
        if main_folder is None:
            example = f" ({files.example})" if files.example else ""
            raise CheckpointError(
                f"{self.store.redacted}: looked for {' or '.join(configs.values())} and found none; expected a folder "
                f"in the {files.library} layout{example}"
            )
        prefix = f"{main_folder}/" if main_folder else ""
        listed = {path: (size, tag) for path, size, tag in self.store.versions(depth=2)}
        versions = {path: listed[path] for path in files.select(listed, self.dtype)}
        part = files.part(main_folder)
        if not part.has_weights(path.removeprefix(prefix) for path in versions if path.startswith(prefix)):
            raise CheckpointError(
                f"{self.store.redacted}: looked for {prefix}{part.weights}.safetensors (or .fp16.safetensors) and "
                "found none. Only safetensors are loaded: pickled .bin and .ckpt files can run code"
            )
        size = sum(size for size, _ in versions.values())
        if len(versions) > MAX_FILES or size > MAX_BYTES:
            raise CheckpointError(
                f"{self.store.redacted}: {len(versions)} files of {size / 1e9:.1f} GB match "
                f"{', '.join(files.patterns)}; expected at most {MAX_FILES} files of {MAX_BYTES / 1e9:.0f} GB"
            )
        return versions

    def _fetch(self, copy: Path, versions: Versions) -> None:
        """Make the copy unless another process has done so. It gets no record if the store changed meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            if _read_record(copy) is not None:
                return
            for folder in self.folder.iterdir():
                if folder.is_dir() and _read_record(folder) is None:  # left by a process that was killed
                    shutil.rmtree(folder)
            size = sum(size for size, _ in versions.values())
            log.info("%s: copying %d files, %d bytes", self.store.redacted, len(versions), size)
            files = {path: self._fetch_file(path, copy / path) for path in sorted(versions)}
            if self._list() == versions:
                record = {"url": self.store.redacted, "files": files, "finished": time.time()}
                write_atomically(str(copy / RECORD), json.dumps(record, indent=1).encode())

    def _fetch_file(self, path: str, target: Path) -> str:
        """Copy a file and return its sha256."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.store.open(path) as source, target.open("xb") as file:
            while block := source.read(BLOCK_BYTES):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    def _discard(self, copy: Path, record: dict[str, Any]) -> None:
        """Delete the record of a damaged copy, unless another process has repaired the copy meanwhile."""
        with locked(self.folder / "lock"):
            if _read_record(copy) == record:
                (copy / RECORD).unlink()


def _read_record(copy: Path) -> dict[str, Any] | None:
    """Read the record of a copy; None if the copy is incomplete."""
    try:
        record = json.loads((copy / RECORD).read_bytes())
        return record if isinstance(record["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged_files(copy: Path, record: dict[str, Any], files: ModelFiles, dtype: Dtype) -> list[str]:
    """Return the paths of the files of a copy that differ from its record."""
    try:
        actual = digests(copy, files, dtype)
    except OSError as error:  # the disk fails, or another process is repairing the copy
        return [str(error.filename)]
    expected = record["files"]
    return sorted(path for path in actual.keys() | expected.keys() if actual.get(path) != expected.get(path))
