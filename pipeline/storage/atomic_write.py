"""Atomic writes of local files: a file appears under its name only when it is complete and durable."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from pipeline.storage.locks import lock_file, open_lock
from pipeline.storage.unwritable import StorageUnwritable, writing

_FOLDER = ".writing"
_NOT_SUPPORTED = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.writing$")


def temporary_name(path: str) -> str:
    """Return a new name in the folder of `path`, which `is_temporary` recognises."""
    folder, _, name = path.rpartition("/")
    # Shortened, because file systems allow 255 bytes for a name.
    return f"{folder}/.{name[:150]}.{secrets.token_hex(8)}.writing"


def is_temporary(path: str) -> bool:
    """Return True if `path` is a temporary file of a writer, whether the writer is alive or was killed."""
    return _TEMPORARY.fullmatch(path.rpartition("/")[2]) is not None


def write_atomically(path: str, content: bytes | IO[bytes]) -> None:
    """Write `content` to a temporary file, make it durable and rename it to `path`.

    Creates missing parent folders. Removes the temporary files that killed writers left in the same folder, so that a
    repeated run leaves the same tree as an undisturbed one.
    """
    with writing(path):
        _write(path, content, os.replace)


def create_atomically(path: str, content: bytes) -> bool:
    """Write `content` to `path` like `write_atomically`, unless a file exists there.

    Returns:
        True if this call created the file.
    """
    try:
        with writing(path):
            _write(path, content, _rename_to_new)
    except FileExistsError:
        return False
    return True


def _rename_to_new(temporary: str, path: str) -> None:
    """Rename a file, and raise FileExistsError if `path` exists."""
    try:
        os.link(temporary, path)  # unlike a rename, a hard link never replaces a file
        os.remove(temporary)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        # The file system has no hard links: two creators at the same instant may both succeed.
        if os.path.exists(path):
            raise FileExistsError(path) from error
        os.replace(temporary, path)


def _write(path: str, content: bytes | IO[bytes], rename: Callable[[str, str], None]) -> None:
    temporary, file = _create_locked(path)
    try:
        with file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                shutil.copyfileobj(content, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
            _rename_or_explain(rename, temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):  # another writer may have removed it as abandoned
            os.remove(temporary)
        raise
    finally:
        with suppress(OSError):  # the folder is not empty while other writers use it
            os.rmdir(os.path.dirname(temporary))
    _sync_folder(os.path.dirname(path))


def _rename_or_explain(rename: Callable[[str, str], None], temporary: str, path: str) -> None:
    try:
        rename(temporary, path)
    except OSError as error:
        # If the target exists, EPERM may mean only that it belongs to another user.
        if error.errno not in _NOT_SUPPORTED or os.path.exists(path):
            raise
        raise StorageUnwritable(
            f"{path}: the file system cannot rename files ({error.strerror}), so readers could see half of a file. "
            "Name a folder on another file system, or the URL of the store behind it, such as s3://bucket/folder"
        ) from error


def _create_locked(path: str) -> tuple[str, IO[bytes]]:
    """Create a temporary file for `path` and lock it; the lock shows other processes that the writer is alive.

    The file is created in a subfolder next to `path`, because every write searches for the temporary files of killed
    writers, and `path` may be in a folder of a hundred thousand files.
    """
    folder, name = os.path.split(path)
    subfolder = os.path.join(folder, _FOLDER)
    os.makedirs(folder, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            os.mkdir(subfolder)
        temporary = temporary_name(os.path.join(subfolder, name))
        try:
            _remove_abandoned(subfolder)
            file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:
            continue  # another writer has just finished and removed the empty subfolder
        lock_file(file, wait=True)
        # Another writer may have removed the file as abandoned before this one held the lock.
        if os.path.exists(temporary):
            return temporary, file
        file.close()


def _remove_abandoned(folder: str) -> None:
    """Remove the temporary files whose writers have been killed."""
    for entry in os.scandir(folder):
        try:
            with open_lock(entry.path) as file:
                if lock_file(file, wait=False):
                    os.remove(entry.path)
        except OSError:
            continue  # its writer has just finished, or it belongs to another user


def _sync_folder(folder: str) -> None:
    # Otherwise a power failure could lose the new name but keep a commit record that relies on it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
