"""Commands in namespaces of their own, so that no other Ray of the machine is seen, and commands of another user."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
OTHER_USER = 12345
"""A user id without an entry in /etc/passwd."""


def isolated(script: str, folder: Path) -> list[str]:
    """Return a command that runs a bash script with processes, network and /tmp of its own.

    Args:
        script: The script. All processes that it has started are killed at its end.
        folder: Folder that serves as /tmp; it should have a short path.
    """
    # Ray would take an address outside the loopback network, if it is left to choose.
    network = "ip link set lo up; ip addr add 10.9.8.7/32 dev lo; ip route add default dev lo src 10.9.8.7"
    mount = f"mount --bind {shlex.quote(str(folder))} /tmp"
    setup = f"{network}; {mount}"
    flags = ["--pid", "--mount", "--net", "--fork", "--mount-proc", "--kill-child"]
    return ["unshare", *flags, "bash", "-c", f"{setup}; cd /tmp; {script}"]


def as_other_user(command: str) -> str:
    """Return a command line that runs as `OTHER_USER` without a home. It may read every file, such as those of root."""
    read = "dac_read_search"
    identity = f"--reuid {OTHER_USER} --regid {OTHER_USER} --clear-groups"
    rights = f"--inh-caps=+{read} --ambient-caps=+{read} --bounding-set=-all,+{read}"
    return f"setpriv {identity} {rights} env -u HOME {command}"
