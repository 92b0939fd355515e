"""Advisory locks on local files. The system releases a lock when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


def lock_file(file: IO[bytes], *, wait: bool) -> bool:
    """Lock an open file for this process.

    Args:
        file: The file; closing it releases the lock.
        wait: Wait until no other process holds the lock.

    Returns:
        True if this process now holds the lock. False if another one holds it or the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def open_lock(path: str | os.PathLike[str], *, create: bool = False) -> IO[bytes]:
    """Open a file to lock it, without following a link and without waiting for anybody.

    Args:
        path: The file. Others may have put something else there.
        create: Create the file where it is missing.

    Raises:
        OSError: There is no regular file at `path`.
    """
    # Writing is needed only to create it: another user of a shared cache may have created the file.
    flags = (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file, so it cannot be a lock; delete it", os.fspath(path))
    return os.fdopen(descriptor, "r+b" if create else "rb", buffering=0)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of the file at `path` within a `with` block, after waiting for other holders.

    Creates the file where it is missing.

    Raises:
        OSError: The file system has no locks.
    """
    with open_lock(path, create=True) as file:
        if not lock_file(file, wait=True):
            raise OSError(errno.ENOLCK, "the file system does not support locks", os.fspath(path))
        yield
