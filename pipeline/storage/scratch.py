"""Scratch folders that a later process removes when their process was killed."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile

from pipeline.storage.locks import lock_file

_PREFIX = "diffseg-scratch-"


class ScratchFolder:
    """A new temporary folder of this process, which lasts until `remove` is called.

    Each instance holds the lock of a file in its folder. A new instance first removes the scratch folders whose lock
    is free, because their processes have ended.

    Attributes:
        path: The path of the folder.
    """

    _LOCK = "lock"

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        for lock in glob.glob(os.path.join(glob.escape(base), f"{_PREFIX}*", self._LOCK)):
            self._remove_if_abandoned(lock)
        while True:
            self.path = tempfile.mkdtemp(prefix=_PREFIX)
            self._file = open(os.path.join(self.path, self._LOCK), "wb")  # noqa: SIM115 - open until `remove`
            lock_file(self._file, wait=True)
            # Another process may have removed the folder as abandoned before this one held the lock.
            if os.path.exists(self._file.name):
                return
            self._file.close()

    def remove(self) -> None:
        """Delete the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._file.close()

    @staticmethod
    def _remove_if_abandoned(lock: str) -> None:
        try:
            with open(lock, "rb") as file:
                if lock_file(file, wait=False):
                    shutil.rmtree(os.path.dirname(lock), ignore_errors=True)
        except OSError:
            return  # the folder has just been removed, or belongs to another user
