"""Advisory locks on local files. The system releases a lock when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
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


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of the file at `path` within a `with` block, after waiting for other holders.

    Creates the file where it is missing.

    Raises:
        OSError: The file system has no locks.
    """
    with open(path, "ab") as file:
        if not lock_file(file, wait=True):
            raise OSError(errno.ENOLCK, "the file system does not support locks", os.fspath(path))
        yield
