"""The log of a submitted job, followed to its end over connections that may break."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.common import INTERRUPTED, OK, SOME_FAILED
from pipeline.storage.redaction import redact

STOPPED, UNKNOWN = 143, 75  # as of a driver that SIGTERM ended; EX_TEMPFAIL of sysexits.h

QUIET_SECONDS = 120.0
"""Without a word of the log until the connection is made anew: one that a network has dropped silently says nothing."""
PATIENCE_SECONDS = 300.0
"""For which the cluster may fail to answer."""
PAUSE_SECONDS = 2.0

_DROPPED = (OSError, RuntimeError, aiohttp.ClientError)


def follow(client: JobSubmissionClient, job: str, how_to_go_on: str) -> int:
    """Write the job's log to standard output until the job ends; the exit code, as `diffseg submit` documents it."""
    log = JobLog(client, job)
    silent_since = None
    try:
        while True:
            log.tail()
            try:
                found = client.get_job_info(job)
            except AuthenticationError:
                raise
            except (OSError, RuntimeError) as error:
                if "status code 404" in str(error):
                    _say(f"the cluster does not know job {job} any more: its head was started anew. Submit it again")
                    return SOME_FAILED
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > PATIENCE_SECONDS:
                    _say(f"the cluster is not heard of any more; the job may go on\n{how_to_go_on}")
                    return UNKNOWN
            else:
                silent_since = None
                if found.status.is_terminal():
                    return exit_code(found)
            time.sleep(PAUSE_SECONDS)
    except KeyboardInterrupt:
        _say(f"\nthe job goes on\n{how_to_go_on}")
        return INTERRUPTED


class JobLog:
    """What a job writes, each part once, however often the connection is made anew."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job = client, job
        self._written = 0  # characters

    def tail(self) -> None:
        """Write what comes, until the job ends, the connection does, or nothing comes for a while."""
        try:
            asyncio.run(self._tail())
        except _DROPPED:
            return

    async def _tail(self) -> None:
        passed = 0  # a new connection begins with the log's first line
        parts = self._client.tail_job_logs(self._job)
        while True:
            coming = asyncio.ensure_future(anext(parts, None))
            # Not wait_for, which forgets a Ctrl-C in the moment in which the connection breaks (until Python 3.12).
            await asyncio.wait({coming}, timeout=QUIET_SECONDS)
            if not coming.done() or (text := coming.result()) is None:
                return
            fresh = text[max(0, self._written - passed) :]
            passed += len(text)
            self._written = max(self._written, passed)
            sys.stdout.write(fresh)
            sys.stdout.flush()


def exit_code(job: JobDetails) -> int:
    """Of a job that has ended. One that failed without a code of its own is explained on standard error."""
    if job.status == JobStatus.SUCCEEDED:
        return OK
    if job.status == JobStatus.STOPPED:
        _say("the job was stopped; the same command goes on where it stopped")
        return STOPPED
    if job.driver_exit_code is None:  # its node died, or its environment could not be made
        _say(redact(job.message or "the job failed, and Ray does not say why"))
        return SOME_FAILED
    return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code


def _say(text: str) -> None:
    print(text, file=sys.stderr)
