"""Servers that tests start: ports that stay theirs, and an end with the test's process however that ends."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

# Becomes the program, after asking Linux to kill it when the thread that started it ends, however that came about.
_DIES_WITH_US = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def installed(program: str) -> str | None:
    """The path of a program that a package brought, beside this Python or else on PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


def guarded(line: list[str]) -> list[str]:
    """The command that runs `line` (a full path first) until the thread that starts it ends, and no longer."""
    return [sys.executable, "-ISc", _DIES_WITH_US, str(os.getpid()), *line] if sys.platform == "linux" else line


def reserved_port() -> socket.socket:
    """A port of 127.0.0.1 that is ours while this socket is open: servers can listen on it, others do not get it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held
