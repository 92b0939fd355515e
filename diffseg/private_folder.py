"""A folder for temporary files that no other user of the machine can enter or prepare.

The folder for temporary files belongs to everybody. A file or a folder with a known name there may therefore have been
made by somebody else, to stop a program or to be trusted by it.
"""

from __future__ import annotations

import glob
import os
import stat
import tempfile
from contextlib import suppress


def private_folder() -> str:
    """Return a folder that belongs to this user and that nobody else can enter. It is made on the first call.

    Processes of the same user share it, unless somebody else has taken its name; then the next name is used.

    Raises:
        OSError: There is no folder for temporary files.
    """
    path = os.path.join(tempfile.gettempdir(), f"diffseg-{os.geteuid()}")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    for candidate in (path, *sorted(glob.glob(f"{glob.escape(path)}-*"))):
        if _make_private(candidate):
            return candidate
    return tempfile.mkdtemp(prefix=f"{os.path.basename(path)}-")


def _make_private(path: str) -> bool:
    """Return True if a path is a folder of this user, to which then nobody else has access."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(path, 0o700)
    return True


def use_private_torch_cache() -> None:
    """Make torch put its compiler cache into the private folder, before the import of diffusers creates it.

    By default torch uses a folder in the folder for temporary files whose name only depends on the user's.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(OSError):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(private_folder(), "torchinductor")
