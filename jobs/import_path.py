"""Keeps the working directory out of the import path: a data set may hold a file such as torch.py or json.py.

The package imports this module before any other, so it needs no module that Python has not loaded already.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder of the commands. As the working directory it stays, for jobs of Ray that bring their code with them."""


def leave_working_directory() -> None:
    """Remove the working directory from the import path of this process, where `python -m` or PYTHONPATH put it."""
    sys.path[:] = [entry for entry in sys.path if not _is_working_directory(entry)]


@contextmanager
def safe_imports_of_children() -> Iterator[None]:
    """Let no process that this one starts import from the working directory.

    Processes of `multiprocessing` begin as `python -c`, which has the working directory first in its import path. The
    variable PYTHONSAFEPATH prevents that; Python 3.10 does not know it.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    os.environ["PYTHONSAFEPATH"] = "1"
    if before["PYTHONPATH"] is not None:
        entries = before["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if not _is_working_directory(entry))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_working_directory(entry: str) -> bool:
    """Return True for an entry of an import path that is the working directory; an empty one is."""
    try:
        folder, working_directory = os.path.realpath(entry or os.curdir), os.path.realpath(os.curdir)
    except OSError:  # the working directory has been deleted
        return not entry
    return folder == working_directory and folder != os.path.realpath(_CHECKOUT)
