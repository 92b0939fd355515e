"""`paused_label PATTERN NUMBER SRC OUT …`: a run of `diffseg label` that pauses itself with SIGSTOP at an exact moment.

It pauses just before it renames a temporary file to a path that matches PATTERN for the NUMBER-th time, and continues
at SIGCONT. Without further flags the run has no model, which is faster.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages

from blank_worker import blank_run
from killed_at_rename import send_at_rename

import jobs.label
from jobs.common import guarded


def main(pattern: str, number: str, source: str, out: str, *flags: str) -> int:
    """Run, and return the exit code of `diffseg label`."""
    send_at_rename(pattern, int(number), signal.SIGSTOP)
    if flags:
        return jobs.label.main([source, out, *flags])
    return guarded(lambda: 1 if blank_run(source, out).failed else 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
