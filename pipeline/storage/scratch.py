"""Scratch folders that a later process removes when their process was killed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from diffseg.private_folder import private_folder
from pipeline.storage.locks import lock_file, open_lock

_PREFIX = "scratch-"


class ScratchFolder:
    """A new temporary folder of this process, which lasts until `remove` is called.

    Each instance holds the lock of a file in its folder. A new instance first removes the scratch folders whose lock
    is free, because their processes have ended. All lie in a folder that only this user can enter.

    Attributes:
        path: The path of the folder.
    """

    _LOCK = "lock"

    def __init__(self) -> None:
        base = private_folder()
        for name in os.listdir(base):
            if name.startswith(_PREFIX):
                self._remove_if_abandoned(os.path.join(base, name, self._LOCK))
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=base)
            lock = os.path.join(self.path, self._LOCK)
            self._file = open_lock(lock, create=True)
            lock_file(self._file, wait=True)
            # Another process may have removed the folder as abandoned before this one held the lock.
            if os.path.exists(lock):
                return
            self._file.close()

    def remove(self) -> None:
        """Delete the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._file.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Name the folder in an error of the block that says that the disk is full; libraries name no file."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
                reason = "no space is left for temporary files; set TMPDIR to a folder on another disk"
                raise OSError(error.errno, reason, self.path) from error
            raise

    @staticmethod
    def _remove_if_abandoned(lock: str) -> None:
        try:
            with open_lock(lock) as file:
                if lock_file(file, wait=False):
                    shutil.rmtree(os.path.dirname(lock), ignore_errors=True)
        except OSError:
            return  # the folder has just been removed
