"""Recognises that the Python of a cluster cannot import this package or one of its requirements."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ray.exceptions import RayError

from pipeline.errors import RunFailed

_NO_MODULE = re.compile(r"No module named '([^']+)'")
_IMPORT_ERROR = re.compile(r"^(?:ImportError|ModuleNotFoundError): (.+)$", re.MULTILINE)
_FAILED_IMPORT = "failed to import on the worker"
"""Words in Ray's error of an actor or a task whose code a worker cannot import."""


def missing_module_error(error: BaseException) -> RunFailed | None:
    """Return an error that names the module which a worker could not import, or None if an error has another cause."""
    for cause in _chain(error):
        reason = ""
        if isinstance(cause, ImportError):
            reason = str(cause)
        elif isinstance(cause, RayError):
            reason = _reason(str(cause))
        if reason:
            return RunFailed(
                f"the Python of the workers cannot import the code of this command ({reason}); install the same "
                "version of diffseg-pipeline on every node, or send it with `diffseg submit --working-dir`"
            )
    return None


def _reason(text: str) -> str:
    """Return what could not be imported according to the text of an error of Ray, "" if it is about something else."""
    if modules := _NO_MODULE.findall(text):
        return f"No module named '{modules[-1]}'"
    if _FAILED_IMPORT not in text:
        return ""
    reasons = _IMPORT_ERROR.findall(text)
    return reasons[-1] if reasons else _FAILED_IMPORT


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__
