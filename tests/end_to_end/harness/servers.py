"""Ports and processes for the servers that tests start."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

# Asks Linux for a SIGKILL when the thread that started this process ends, for whatever reason, and runs the program.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def installed(program: str) -> str | None:
    """Return the path of a program beside this Python, where packages install theirs, or else on PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


def guarded(line: list[str]) -> list[str]:
    """Return a command that runs `line` (its first word is a full path) until the thread that starts it ends."""
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *line] if sys.platform == "linux" else line


def reserved_port() -> socket.socket:
    """Reserve a port of 127.0.0.1 while the returned socket is open: a server may listen on it, nobody else gets it."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
