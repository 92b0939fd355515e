"""The log of a submitted job, followed until the job ends, over connections that may break."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.common import INTERRUPTED, OK, SOME_FAILED
from jobs.streams import print_text
from pipeline.storage.redaction import redact

STOPPED, UNKNOWN = 143, 75
"""Exit codes: 143 is that of a driver that SIGTERM ended, and 75 is EX_TEMPFAIL of sysexits.h."""

QUIET_SECONDS = 120.0
"""Time without log output after which the connection is opened again: a dropped connection may give no error."""
OUTAGE_TIMEOUT = 300.0
"""Seconds for which the cluster may fail to answer."""
POLL_SECONDS = 2.0

_CONNECTION_ERRORS = (OSError, RuntimeError, aiohttp.ClientError)


def follow(client: JobSubmissionClient, job: str, advice: str) -> int:
    """Write the log of a job to standard output until the job ends.

    Args:
        client: The connection to the cluster.
        job: The id of the job.
        advice: What to print when this function ends before the job does.

    Returns:
        The exit code that `diffseg submit` documents.
    """
    log = JobLog(client, job)
    unreachable_since = None
    try:
        while True:
            log.tail()
            try:
                details = client.get_job_info(job)
            except AuthenticationError:
                raise
            except (OSError, RuntimeError) as error:
                if "status code 404" in str(error):
                    _print_error(
                        f"the cluster does not know job {job} any more, as its head was restarted; submit it again"
                    )
                    return SOME_FAILED
                unreachable_since = unreachable_since or time.monotonic()
                if time.monotonic() - unreachable_since > OUTAGE_TIMEOUT:
                    _print_error(f"the cluster no longer answers; the job may continue\n{advice}")
                    return UNKNOWN
            else:
                unreachable_since = None
                if details.status.is_terminal():
                    return exit_code(details)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _print_error(f"\nthe job continues\n{advice}")
        return INTERRUPTED


class JobLog:
    """The log of a job, of which each part is written once, however often the connection is opened again."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job = client, job
        self._written = 0  # characters of the log that were written so far

    def tail(self) -> None:
        """Write log output until the job ends, the connection breaks, or no output comes for `QUIET_SECONDS`."""
        try:
            asyncio.run(self._tail())
        except _CONNECTION_ERRORS:
            return

    async def _tail(self) -> None:
        received = 0  # characters over this connection, which starts again at the first line of the log
        parts = self._client.tail_job_logs(self._job)
        while True:
            next_part = asyncio.ensure_future(anext(parts, None))
            # asyncio.wait_for would lose a Ctrl-C that comes while the connection breaks (until Python 3.12).
            await asyncio.wait({next_part}, timeout=QUIET_SECONDS)
            if not next_part.done() or (text := next_part.result()) is None:
                return
            new_text = text[max(0, self._written - received) :]
            received += len(text)
            self._written = max(self._written, received)
            print_text(new_text, end="")


def exit_code(job: JobDetails) -> int:
    """Return the exit code for a job that has ended; print why it ended if it has no exit code itself."""
    if job.status == JobStatus.SUCCEEDED:
        return OK
    if job.status == JobStatus.STOPPED:
        _print_error("the job was stopped; run the same command again to continue")
        return STOPPED
    if job.driver_exit_code is None:  # its node died, or its environment could not be created
        _print_error(redact(job.message or "the job failed, and Ray does not say why"))
        return SOME_FAILED
    return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code


def _print_error(text: str) -> None:
    print_text(text, error=True)
