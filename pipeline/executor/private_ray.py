"""Starts a Ray for one command, which only this user can use and which ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
"""How often Ray is started. It gives a new node 30 s, which is too short on a machine that is busy with other work."""
TIMED_OUT = "timed out during startup"

LONGEST_BASE = 22
"""Longest folder for temporary files that is used, in characters: the path of a socket may have about a hundred."""


@contextmanager
def private_environment() -> Iterator[None]:
    """Set what a private Ray needs in the environment of this process and of those that it starts.

    * A token, which is in no file: whoever can reach a port of this Ray could otherwise run code as this user. Ray
      would write a token into ~/.ray, where it would change every later Ray of the user, and which may not be writable.
    * The node's address is that of the loopback interface, and all of Ray's processes listen only there.
    """
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_TOKEN_PATH": None,
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # Ray's default on Windows and macOS
    }
    before = {name: os.environ.get(name) for name in variables}
    is_cluster_enabled = ray_constants.ENABLE_RAY_CLUSTER
    try:
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray reads the variable at its import
        set_environment(variables)
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster_enabled
        set_environment(before)


def set_environment(variables: Mapping[str, str | None]) -> None:
    """Set environment variables, or remove those that are None, and let Ray read its mode and token again."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def start_private_ray(cores: int, **options: Any) -> None:
    """Start a Ray with some CPUs, within `private_environment`.

    Raises:
        Exception: Ray does not start, also not when a start that took too long is repeated.
    """
    folder = _session_folder()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address="local", num_cpus=cores, include_dashboard=False, _temp_dir=folder, **options)
        except Exception as error:  # Ray raises Exception itself; the processes of this start end with the command
            if TIMED_OUT not in str(error) or attempt == START_ATTEMPTS:
                raise
            log.warning("Ray did not start within its 30 s, because this machine is busy; it is started again")
        else:
            return


def _session_folder() -> str:
    """Return a folder for Ray's sessions. Ray opens it to all users, so it lies in one that only this user may enter.

    Raises:
        OSError: The folder for temporary files cannot be written to.
    """
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(base) > LONGEST_BASE:
        base = "/tmp"
    folder = os.path.join(base, f"ray-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        folder = tempfile.mkdtemp(prefix="ray-", dir=base)
    elif stat.S_IMODE(status.st_mode) != 0o700:
        os.chmod(folder, 0o700)
    return os.path.join(folder, "ray")
