"""A folder of images or of tars that changes in random, seeded ways, as people change their folders."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

Kind = Literal["images", "tars"]
FIRST_TIME = 1_700_000_000


def png(seed: int) -> bytes:
    """Return a small PNG of one colour, which follows from the seed."""
    buffer = io.BytesIO()
    colour = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(colour, (24, 32, 3)).copy()).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, *names: str, seed: int = 0) -> None:
    """Write an image for each name. Images of another seed have another content and another time."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed + number))
        os.utime(path, (FIRST_TIME + seed, FIRST_TIME + 1000 * seed + number))


def write_tar(path: Path, keys: str, *, time: int = FIRST_TIME) -> None:
    """Write a tar with one image for each letter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            _add_image(tar, f"{key}.png", png(ord(key)))
    os.utime(path, (time, time))


def _add_image(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class ChangingSource:
    """A source folder and its changes. Each change has another time, so no test depends on the clock of a file system.

    Attributes:
        folder: The folder.
        changes: The name of each change so far.
    """

    def __init__(self, folder: Path, kind: Kind, seed: int, *, files: int) -> None:
        """Make a folder with some files, in nested folders."""
        self.folder, self._kind = folder, kind
        self._rng = random.Random(f"{kind} {seed}")
        self._time = FIRST_TIME
        self._number = 0
        self.changes: list[str] = []
        for _ in range(files):
            self.add()
        self.changes.clear()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def change(self) -> str:
        """Make one random change, and return its name."""
        changes: list[Callable[[], None]] = [self.add, self.remove, self.rename, self.replace, self.touch, self.move]
        if self._kind == "tars":
            changes.append(self.grow)
        self._rng.choice(changes)()
        return self.changes[-1]

    def add(self) -> None:
        """Add a file, sometimes one that sorts first."""
        folder = self._rng.choice(["", "a", "b/c", "d"])
        name = f"{self._rng.choice('0m')}{self._next():04d}.{'png' if self._kind == 'images' else 'tar'}"
        self._write(self.folder / folder / name, self._content())
        self.changes.append(f"add {folder}/{name}")

    def remove(self) -> None:
        files = self.files()
        if len(files) > 2:
            path = self._rng.choice(files)
            path.unlink()
            self.changes.append(f"remove {path.name}")
        else:
            self.add()

    def rename(self) -> None:
        path = self._rng.choice(self.files())
        path.rename(path.with_name(f"r{self._next():04d}{path.suffix}"))
        self.changes.append(f"rename {path.name}")

    def replace(self) -> None:
        path = self._rng.choice(self.files())
        self._write(path, self._content())
        self.changes.append(f"replace {path.name}")

    def touch(self) -> None:
        """Change the time of a file, and nothing else."""
        path = self._rng.choice(self.files())
        self._set_time(path)
        self.changes.append(f"touch {path.name}")

    def move(self) -> None:
        """Move a folder with everything in it."""
        folders = [path for path in self.folder.iterdir() if path.is_dir() and any(path.rglob("*.*"))]
        if not folders:
            self.add()
            return
        folder = self._rng.choice(sorted(folders))
        shutil.move(folder, self.folder / f"f{self._next():04d}")
        self.changes.append(f"move {folder.name}/")

    def grow(self) -> None:
        """Append samples to a tar."""
        path = self._rng.choice(self.files())
        with tarfile.open(path, "a") as tar:
            self._add_samples(tar)
        self._set_time(path)
        self.changes.append(f"grow {path.name}")

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _content(self) -> bytes:
        if self._kind == "images":
            return png(self._next())
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            self._add_samples(tar)
        return buffer.getvalue()

    def _add_samples(self, tar: tarfile.TarFile) -> None:
        for _ in range(self._rng.randrange(1, 4)):
            number = self._next()
            _add_image(tar, f"k{number:04d}.png", png(number))

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._set_time(path)

    def _set_time(self, path: Path) -> None:
        self._time += 1
        os.utime(path, (self._time, self._time))
