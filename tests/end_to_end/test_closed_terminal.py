"""A run whose terminal is closed: it stops like at SIGTERM, and leaves no process and no file that says it runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
from clusters import short_folder
from runs import DEADLINE, environment

SLEEPERS = Path(__file__).parent / "harness" / "sleepers.py"
CLEANS_UP = """
import sys, time
from pathlib import Path
from jobs.common import guarded

def command():
    Path(sys.argv[1]).touch()
    try:
        time.sleep(60)
    finally:
        print("this terminal is closed", flush=True)
        Path(sys.argv[1]).write_text("cleaned up")

sys.exit(guarded(command))
"""


def _take_terminal() -> None:
    """Make the terminal that of this session, and let its end end this process, also if the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class InTerminal:
    """A command in a terminal, the leader of its session."""

    def __init__(self, line: list[str], folder: Path, **variables: str) -> None:
        self._printed = b""
        self._terminal, slave = os.openpty()
        self.process = subprocess.Popen(
            line,
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment() | variables,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        os.set_blocking(self._terminal, False)

    def wait_for(self, path: Path, pattern: str) -> None:
        """Wait for a file, and read what the command prints meanwhile."""
        end = time.monotonic() + DEADLINE
        while not list(path.glob(pattern)):
            with contextlib.suppress(OSError):  # it has printed nothing more, or has ended
                self._printed += os.read(self._terminal, 65536)
            assert self.process.poll() is None, self._printed.decode()
            assert time.monotonic() < end, self._printed.decode()
            time.sleep(0.05)

    def close(self) -> int:
        """Close the terminal, and return the exit code of the command."""
        os.close(self._terminal)
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.process.kill()


def test_a_command_cleans_up_when_its_terminal_is_closed(tmp_path: Path) -> None:
    command = InTerminal([sys.executable, "-c", CLEANS_UP, str(tmp_path / "file")], tmp_path)
    command.wait_for(tmp_path, "file")
    assert command.close() == 129
    assert (tmp_path / "file").read_text() == "cleaned up"


def test_nohup_keeps_a_command_alive(tmp_path: Path) -> None:
    command = InTerminal(
        ["nohup", sys.executable, "-c", CLEANS_UP.replace("60", "2"), str(tmp_path / "file")], tmp_path
    )
    command.wait_for(tmp_path, "file")
    assert command.close() != 129
    assert (tmp_path / "file").read_text() == "cleaned up"


def test_a_run_on_a_private_ray_ends_with_its_terminal() -> None:
    with short_folder() as folder:
        source = f"{folder}/{{{','.join(f'{number:03d}' for number in range(200))}}}.tar"
        line = [sys.executable, str(SLEEPERS), "0.5", source, str(folder / "out"), "--device", "cpu", "--workers", "1"]
        run = InTerminal([*line, "--address", "local"], folder, TMPDIR=str(folder))
        run.wait_for(folder / "out" / "commits", "[!.]*.json")
        family = psutil.Process(run.process.pid).children(recursive=True)
        assert run.close() == 129
        assert json.loads((folder / "out" / "progress.json").read_text())["state"] == "stopped"
        assert psutil.wait_procs(family, timeout=DEADLINE)[1] == []
