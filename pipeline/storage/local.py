"""Files of this machine: a recursive listing, and writing that shows a name only when the file is whole."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

_SCRATCH = "diffseg-scratch-"
_WRITING = ".writing"
_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.writing$")


def temporary_name(path: str) -> str:
    """A fresh name in the same folder as ``path``; ``is_temporary`` knows it again."""
    folder, _, name = path.rpartition("/")
    # Long names stay below the 255 bytes that file systems allow.
    return f"{folder}/.{name[:150]}.{secrets.token_hex(8)}.writing"


def is_temporary(path: str) -> bool:
    """Whether ``path`` is a file that somebody is writing, or that a killed process has left."""
    return _TEMPORARY.fullmatch(path.rpartition("/")[2]) is not None


def files(folder: str, depth: int | None = None) -> Iterator[tuple[str, int]]:
    """(relative path, size in bytes) of each file below ``folder``; links are followed, but never round in a circle.

    Yields nothing when there is no such folder; ``depth`` 1 is the folder without those in it. Names that are not UTF-8
    come as Python's surrogate escapes.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        relative, above = pending.pop()
        try:
            here = os.stat(os.path.join(folder, relative))
            entries = list(os.scandir(os.path.join(folder, relative)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            continue
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                if depth is None or path.count("/") + 1 < depth:
                    pending.append((path, above | {identity}))
            elif entry.is_file() and not is_temporary(path):
                yield path, entry.stat().st_size


def read_if_possible(path: str) -> bytes | None:
    """What the file holds; None where there is none, or it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None


def write_atomically(path: str, content: bytes | IO[bytes]) -> None:
    """Write ``content`` aside, make it durable, and give it its name in one step. Makes the folders above.

    What a killed process left half-written in the same folder is removed on the way, so that a repeated run leaves
    the same tree as an undisturbed one.
    """
    _write(path, content, os.replace)


def create_atomically(path: str, content: bytes) -> bool:
    """As ``write_atomically``, but a file that is there already stays; whether ``content`` was written."""
    try:
        _write(path, content, _give_new_name)
    except FileExistsError:
        return False
    return True


def _give_new_name(aside: str, path: str) -> None:
    try:
        os.link(aside, path)  # refuses to replace, which no rename does
        os.remove(aside)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # A file system without hard links: two creators in the same instant may both succeed.
        if os.path.exists(path):
            raise FileExistsError(path) from error
        os.replace(aside, path)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of the file at ``path``, made if need be; whoever comes later waits. It goes with its process."""
    with open(path, "ab") as file:
        if not _lock(file, wait=True):
            raise OSError(errno.ENOLCK, "the file system knows no locks", os.fspath(path))
        yield


class ScratchFolder:
    """A fresh folder for this process alone, until ``remove``. Those of killed processes are removed on the way."""

    _LOCK = "lock"

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        for left in glob.glob(os.path.join(glob.escape(base), f"{_SCRATCH}*", self._LOCK)):
            self._remove_if_left(left)
        while True:
            self.path = tempfile.mkdtemp(prefix=_SCRATCH)
            self._file = open(os.path.join(self.path, self._LOCK), "wb")  # noqa: SIM115 - held until remove
            _lock(self._file, wait=True)
            # Another process may have taken the folder for a left one in the moment before the lock.
            if os.path.exists(self._file.name):
                return
            self._file.close()

    def remove(self) -> None:
        """The folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._file.close()

    @staticmethod
    def _remove_if_left(lock: str) -> None:
        try:
            with open(lock, "rb") as file:
                if _lock(file, wait=False):
                    shutil.rmtree(os.path.dirname(lock), ignore_errors=True)
        except OSError:
            return  # it has just gone, or belongs to somebody else


def _write(path: str, content: bytes | IO[bytes], give_name: Callable[[str, str], None]) -> None:
    aside, file = _create_locked(path)
    try:
        with file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                shutil.copyfileobj(content, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
            give_name(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):  # another writer may have taken it for a left one by now
            os.remove(aside)
        raise
    finally:
        with suppress(OSError):  # other writers are at work in it
            os.rmdir(os.path.dirname(aside))
    _sync_folder(os.path.dirname(path))


def _create_locked(path: str) -> tuple[str, IO[bytes]]:
    """A new temporary file for ``path``; its lock says that its writer lives, and falls with the process.

    It lies in a folder of its own beside ``path``: what killed writers left is looked for at every write, and must not
    be looked for among a hundred thousand files.
    """
    folder, name = os.path.split(path)
    writing = os.path.join(folder, _WRITING)
    os.makedirs(folder, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            os.mkdir(writing)
        aside = temporary_name(os.path.join(writing, name))
        try:
            _remove_leftovers(writing)
            file = open(aside, "xb")  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:
            continue  # another writer has just finished, and removed the empty folder
        _lock(file, wait=True)
        # Another writer's clean-up may have taken the file in the moment before the lock.
        if os.path.exists(aside):
            return aside, file
        file.close()


def _remove_leftovers(folder: str) -> None:
    for entry in os.scandir(folder):
        try:
            with open(entry.path, "rb") as file:
                if _lock(file, wait=False):
                    os.remove(entry.path)
        except OSError:
            continue  # its writer has just finished, or it belongs to somebody else


def _lock(file: IO[bytes], *, wait: bool) -> bool:
    """Whether the lock was taken; False also where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _sync_folder(folder: str) -> None:
    # Without this the new name may be gone after a power failure, while a commit record that relies on it is there.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
