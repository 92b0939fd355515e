"""What the errors of workers mean: whether a node is gone, and whether an error may be charged to a shard."""

from __future__ import annotations

import errno

from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from pipeline.errors import ModelFailed
from pipeline.readers.samples import Shard
from pipeline.storage import StoreUnavailable, redact

DEVICE_ERRORS = ("CUDA", "HIP error", "MPS backend", "AcceleratorError", "OutOfMemoryError")
"""Words in errors after which the state of the device, and so the worker, cannot be trusted."""
NODE_DIED = "node has died"
"""Words in Ray's error of an actor, also of one that was still pending, whose node is dead."""
_DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN)
)


def is_environmental(error: BaseException, shard: Shard) -> bool:
    """Return True if an error comes from the node, a store or the model, so that it costs the shard no attempt.

    An error that names the file of the shard is that of the shard.
    """
    if is_device_error(error) or isinstance(error, (ImportError, ModelFailed, StoreUnavailable)):
        return True
    is_local = isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in _DISK_ERRORS)
    # A file of an image group that cannot be read is a row, not an error, and a shard of prompts has no file.
    has_no_file = shard.kind in ("images", "prompts")
    return is_local and (has_no_file or redact(shard.url).removeprefix("file://") not in str(error))


def is_device_error(error: BaseException) -> bool:
    """Return True if an error makes the state of the worker's device unknown."""
    return any(word in error_text(error) for word in DEVICE_ERRORS)


def is_node_loss(error: RayError) -> bool:
    """Return True if Ray says that an actor's node is dead or does not answer."""
    return isinstance(error, ActorUnavailableError) or NODE_DIED in str(error)


def cause_of(error: RayTaskError) -> BaseException:
    """Return the error that the worker raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def error_text(error: BaseException) -> str:
    """Return the type of an error and its message, of Ray's own errors only the line that tells most."""
    if not isinstance(error, RayError):
        return f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if NODE_DIED in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {reason}"


def every_worker_fails(error: str) -> str:
    """Return the message for a run in which nothing succeeds because of the environment."""
    return (
        f"shard after shard fails on every worker, and no shard is the cause: {error}. Remove the cause, and then run "
        "the same command again to resume"
    )
