"""`killed_at_rename PATTERN NUMBER MODULE …`: run `python -m MODULE …` and kill it at an exact moment.

Every file that must survive a kill is written under a temporary name and then renamed. The process sends itself SIGKILL
just before it renames a file to a path that matches PATTERN for the NUMBER-th time, so NUMBER - 1 such files are
complete. A test that watches for a file and then kills the process may come too late.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from fnmatch import fnmatch
from typing import Any


def send_at_rename(pattern: str, number: int, sent: signal.Signals) -> None:
    """Let this process send itself a signal just before it renames a file to a path for the NUMBER-th time."""
    left = number

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "os.rename" and fnmatch(os.fsdecode(arguments[1]), pattern):  # the event of os.replace, too
            left -= 1
            if left == 0:
                os.kill(os.getpid(), sent)

    sys.addaudithook(audit)


def main(pattern: str, number: int, module: str) -> None:
    """Run the module; sys.argv holds its arguments."""
    send_at_rename(pattern, number, signal.SIGKILL)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.argv = words[2:]
    main(words[0], int(words[1]), words[2])
