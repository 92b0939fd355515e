"""Finds out whether a run is at work in OUT where clocks cannot tell: by watching whether progress.json changes."""

from __future__ import annotations

import logging
import socket
import time

import psutil

from pipeline.errors import RunRefused
from pipeline.executor.progress_file import (
    INTERVAL_SECONDS,
    STALE_SECONDS,
    ProgressReport,
    read_progress,
    refuse_if_running,
)
from pipeline.storage import Storage

log = logging.getLogger(__name__)

WATCH_SECONDS = INTERVAL_SECONDS + 10.0
"""How long progress.json is watched. A driver that is alive writes it once in this time."""
POLL_SECONDS = 1.0


def refuse_live_run(out: Storage) -> None:
    """Check that no run is at work in OUT, before its files are deleted.

    A recent report is refused at once. An old one, or one from the future, proves nothing: the clocks of two machines
    may differ, and the clock of one machine may have been set since the run was started. progress.json is then watched,
    unless the run has reported its end, or its driver was a process of this machine that no longer exists.

    Raises:
        RunRefused: The driver of a run has written progress.json a short time ago, or meanwhile.
    """
    first = read_progress(out)
    if first is None or first.state != "running" or _has_ended(first):
        return
    if first.written <= time.time() + STALE_SECONDS:
        refuse_if_running(out)
    log.warning(
        "the run in %s did not report its end; looking for %.0f s whether its driver, process %d on %s, still reports",
        out.redacted,
        WATCH_SECONDS,
        first.pid,
        first.host,
    )
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        report = read_progress(out)
        if report is None or report.state != "running":
            return
        if report != first:
            raise RunRefused(
                f"{out.redacted}: a run is at work here, on {report.host} as process {report.pid}; it has just "
                "reported. Stop it before you pass --overwrite"
            )


def _has_ended(report: ProgressReport) -> bool:
    return report.host == socket.gethostname() and not psutil.pid_exists(report.pid)
