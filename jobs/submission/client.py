"""The connection of `diffseg submit` to the job server of a Ray cluster."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from jobs.submission.http import HttpOptions
from pipeline.errors import RunFailed
from pipeline.storage.redaction import redact

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

AGENT_TIMEOUT = 60.0
"""Seconds to retry while the head of the cluster answers but cannot run jobs yet."""
NO_AGENT_YET = "No available agent to submit job"
"""Ray's error while the head cannot run jobs yet."""

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class SubmissionRefused(ValueError):
    """A job that must not be submitted, or a cluster that refuses the token; the message says what to do."""


def job_server_address(flag: str | None) -> str:
    """Return the URL of the job server, from the flag or the environment. Raises SubmissionRefused."""
    address = flag or next(filter(None, map(os.environ.get, _ADDRESS_VARIABLES)), "")
    if not address.startswith(("http://", "https://")):
        problem = redact(address) or "is missing"
        raise SubmissionRefused(
            f"--address {problem}: name the URL of the cluster's dashboard, such as http://HEAD:8265"
        )
    return address


def connect(address: str, http: HttpOptions) -> JobSubmissionClient:
    """Connect to the job server, with the token that Ray's own commands would use.

    Raises:
        SubmissionRefused: The cluster, or a proxy in front of it, does not accept the credentials.
        RunFailed: No job server answers.
    """
    token_variables = (os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH"))
    if any(token_variables) or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it at the import below
    os.environ[_ADDRESS_VARIABLES[0]] = address  # Ray prefers this variable to the argument of its client
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests.exceptions import RequestException, SSLError

    for module in ("job.sdk", "dashboard_sdk"):  # these log every connection and upload
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address, headers=dict(http.headers), cookies=dict(http.cookies), verify=http.verify)
    except AuthenticationError as error:
        raise SubmissionRefused(
            f"{redact(address)} wants the cluster's token, and this machine has no token or another one: put it into "
            "RAY_AUTH_TOKEN, into a file that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token; the credentials of "
            "a proxy in front of the cluster go into --headers or --cookies"
        ) from error
    except RequestException as error:  # an answer that is not that of a job server
        raise RunFailed(
            f"{redact(address)} answers, but not as the job server of Ray ({error}): is there a proxy in front of it, "
            "which needs --headers or --cookies?"
        ) from error
    except ConnectionError as error:
        if isinstance(error.__context__, SSLError):
            raise RunFailed(
                f"the certificate of {redact(address)} is not trusted: name the certificates of its authority with "
                f"--verify PATH ({error.__context__})"
            ) from error
        raise RunFailed(
            f"{redact(address)} does not answer: is this the dashboard's URL (port 8265), and is its port forwarded?"
        ) from error


def start_job(
    client: JobSubmissionClient,
    command_line: str,
    environment: dict[str, Any],
    metadata: Mapping[str, str],
    submission_id: str | None = None,
) -> str:
    """Submit the job and return its id; retry while the cluster is still starting.

    Args:
        client: The connection to the cluster.
        command_line: The command that the job runs.
        environment: Ray's `runtime_env` of the job.
        metadata: What Ray stores with the job.
        submission_id: Id of the job, which no earlier job of the cluster has; None to let Ray choose it.

    Raises:
        RunFailed: The cluster does not accept the job.
    """
    with_retries = Retrying(
        retry=retry_if_exception_message(match=rf"(?s).*{NO_AGENT_YET}"),
        stop=stop_after_delay(AGENT_TIMEOUT),
        wait=wait_fixed(2),
        reraise=True,
    )
    try:
        return with_retries(
            client.submit_job,
            entrypoint=command_line,
            runtime_env=environment,
            metadata=dict(metadata),
            submission_id=submission_id,
        )
    except RuntimeError as error:
        raise RunFailed(f"the cluster does not accept the job: {str(error).strip().rstrip('.')}") from error


def follow_and_stop_commands(job: str, address: str, http: HttpOptions) -> str:
    """Return the commands that follow and stop a job from this machine, one per line."""
    where = f"--address {shlex.quote(redact(address))}{http.advice} {job}"
    mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    return f"follow it: {mode}ray job logs --follow {where}\nstop it:   {mode}ray job stop {where}"
