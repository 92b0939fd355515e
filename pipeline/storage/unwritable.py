"""Folders that cannot be written: the disk is full, a quota is used up, or the file system is read-only."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (*_FULL, errno.EROFS)


class StorageUnwritable(OSError):
    """Nothing can be written to a folder, whatever the file. The message names the folder and its free space."""


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Name the file that is written in the block in every error of the system, which itself names it only on opening.

    Raises:
        StorageUnwritable: The file system is full or read-only.
    """
    try:
        yield
    except StorageUnwritable:
        raise
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise _unwritable(path, error.errno) from error
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), path) from error
        raise


def check_writable(folder: str) -> None:
    """Check that files can be written into a local folder, which need not exist yet.

    Raises:
        StorageUnwritable: The file system is full or read-only.
        PermissionError: The user may not write there.
    """
    parent = _existing(folder)
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise _unwritable(folder, errno.EROFS)
    if shutil.disk_usage(parent).free == 0:
        raise _unwritable(folder, errno.ENOSPC)
    if os.path.isdir(parent) and not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "this user may not write here", parent)


def _unwritable(path: str, number: int) -> StorageUnwritable:
    if number not in _FULL:
        return StorageUnwritable(f"{path}: the file system is read-only; make it writable, or name another folder")
    parent = _existing(path)
    status, usage = os.statvfs(parent), shutil.disk_usage(parent)
    space = f"{_size(usage.free)} of {_size(usage.total)} are free"
    if status.f_files and not status.f_favail:
        space += ", but the file system cannot hold more files"
    reason = "the quota is used up" if number == errno.EDQUOT else "no space is left on the device"
    return StorageUnwritable(f"{path}: {reason} ({space}); free some space, and then run the same command again")


def _existing(path: str) -> str:
    """Return the path or the nearest folder above it that exists."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.0f} TB"
