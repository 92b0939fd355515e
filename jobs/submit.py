"""Label on a Ray cluster from any machine: `diffseg label` as a job there.

diffseg submit SRC OUT --address http://HEAD:8265 [any option of `diffseg label`]

The options of the labelling are checked here before anything is sent. The package comes from the cluster's image, or
with --working-dir from this machine. Without --detach the job's log is followed to its end, and the exit code is the
job's own: 0 all done; 1 some shards, or too many samples, failed; 2 refused, here or there; 143 the job was stopped.
130 after Ctrl-C here and 75 when the cluster is not heard of any more: the job may go on then.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from packaging.requirements import Requirement
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_fixed

from jobs.common import OK, guarded
from jobs.label import LabelCommand
from jobs.label import parse as parse_label
from jobs.submission.working_dir import pack_folder
from pipeline.errors import RunFailed
from pipeline.storage.redaction import MASK, is_secret_name, redact
from pipeline.storage.urls import SourceError, local_path, scheme

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_SECONDS = 60
"""How long `ray job stop` lets the driver end by itself; Ray's own 3 s are too few to end its workers."""

START_SECONDS = 60.0
"""For which a head that answers may not be ready for jobs."""
NOT_YET = "No available agent to submit job"

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_STORE_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


class SubmissionRefused(ValueError):
    """What cannot be submitted, or not with this token; the message says what to do instead."""


@dataclass(frozen=True, kw_only=True)
class SubmitCommand:
    """The flags of `diffseg submit` itself."""

    address: str | None = None
    """URL of the cluster's dashboard, http://HEAD:8265; default: $RAY_API_SERVER_ADDRESS or $RAY_ADDRESS."""
    working_dir: Path | None = None
    """Folder that is sent to the cluster and is the job's current folder there, such as a checkout of this package.
    What .gitignore or .rayignore name stays here, and tars, Parquet files, tests and caches do too."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A pattern, as in .gitignore, of what else of the working directory stays here."""
    pip: bool = False
    """Let every node install what this package requires before the job starts; an image that holds it starts faster."""
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """A variable of this environment for the job and its workers. None with a secret: Ray shows them."""
    detach: bool = False
    """Print the job's id and end, instead of following it."""


def parse(argv: list[str]) -> tuple[SubmitCommand, LabelCommand, list[str]]:
    """The flags of `submit`, those of `diffseg label`, and the words that these were.

    Ends the process with exit code 2 for what `diffseg label` would not take. Raises SubmissionRefused and SourceError
    for what it would take, but a job must not be given.
    """
    command, words = tyro.cli(
        SubmitCommand,
        args=argv,
        prog="diffseg submit",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=True,
    )
    label = parse_label(words)
    _refuse_secrets(label, shlex.join(words))
    _refuse_folders_of_this_machine(label)
    return command, label, words


def _refuse_secrets(label: LabelCommand, line: str) -> None:
    if label.storage_options:
        raise SubmissionRefused(
            "--storage-options would stay in Ray's list of jobs, for everybody to see: give the nodes the store's own "
            "variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …) or an identity of their own, or --env NAME for what is "
            "no secret"
        )
    if redact(line) != line:
        raise SubmissionRefused(
            f"{redact(line)}: a password or signature in a URL ({MASK}) would stay in Ray's list of jobs; give the "
            "nodes the store's own variables, or an identity of their own"
        )


def _refuse_folders_of_this_machine(label: LabelCommand) -> None:
    for url in (label.source, label.out):
        if not scheme(url) and not os.path.isabs(local_path(url)):
            raise SourceError(
                f"{url} is a path on this machine, which the cluster does not see: name a URL such as "
                "s3://bucket/folder, or the absolute path of a folder that all nodes share"
            )


def runtime_environment(command: SubmitCommand, label: LabelCommand) -> dict[str, Any]:
    """Ray's `runtime_env` of the job, but for the working directory."""
    found: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **_variables(command.env)}}
    if command.pip:
        found["pip"] = requirements((label.source, label.out, label.label.model))
    return found


def _variables(names: Sequence[str]) -> Mapping[str, str]:
    for name in names:
        if name not in os.environ:
            raise SubmissionRefused(f"--env {name}: there is no such variable here")
        if is_secret_name(name) or redact(os.environ[name]) != os.environ[name]:
            raise SubmissionRefused(
                f"--env {name}: this looks like a secret, and Ray's dashboard and list of jobs show a job's variables; "
                "set it in the environment of the nodes (on Kubernetes: secretKeyRef)"
            )
    return {name: os.environ[name] for name in names}


def requirements(urls: Sequence[str]) -> list[str]:
    """What pip must install for this package, with the drivers of these URLs' stores, but for Ray itself."""
    extras = {"", *(_STORE_EXTRAS[scheme(url)] for url in urls if scheme(url) in _STORE_EXTRAS)}
    found = []
    for line in metadata.requires("diffseg-pipeline") or ():
        required = Requirement(line)
        wanted = required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and required.name != "ray":  # a node has the Ray that it runs on
            required.marker = None
            found.append(str(required))
    return found


def _submit(argv: list[str]) -> int:
    command, label, words = parse(argv)
    environment = runtime_environment(command, label)
    address = _address(command.address)
    client = _client(address)
    for path in (label.source, label.out):
        if not scheme(path):
            print(f"{path}: taken for a folder that all nodes share at this path", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="diffseg-submit-") as folder:
        if command.working_dir:
            package = Path(folder) / "working-dir.zip"
            print(pack_folder(command.working_dir, package, exclude=command.exclude), file=sys.stderr)
            environment["working_dir"] = str(package)
        job = _begin(client, shlex.join(["python", "-m", "jobs.label", *words]), environment)
    if command.detach:
        print(job)
        print(how_to_go_on(job, address), file=sys.stderr)
        return OK
    from jobs.submission.log import follow

    print(f"job {job} at {redact(address)}", file=sys.stderr)
    return follow(client, job, how_to_go_on(job, address))


def _address(given: str | None) -> str:
    """The URL of the job server. Raises SubmissionRefused."""
    found = given or next(filter(None, map(os.environ.get, _ADDRESS_VARIABLES)), "")
    if not found.startswith(("http://", "https://")):
        raise SubmissionRefused(
            f"--address {redact(found) or 'is missing'}: name the URL of the cluster's dashboard, such as http://HEAD:8265"
        )
    return found


def _client(address: str) -> JobSubmissionClient:
    """A connection to the job server, with the token that Ray's own commands would find."""
    places = (os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH"))
    if any(places) or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by Ray when it is imported, which is now
    os.environ[_ADDRESS_VARIABLES[0]] = address  # which Ray prefers to what its client is given
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("job.sdk", "dashboard_sdk"):  # which tell of every connection and upload
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise SubmissionRefused(
            f"{redact(address)} wants the cluster's token, and what was found here is none, or another: put it into "
            "RAY_AUTH_TOKEN, a file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
        ) from error
    except ConnectionError as error:
        raise RunFailed(
            f"{redact(address)} does not answer: is this the dashboard's URL (port 8265), and is its port forwarded?"
        ) from error


def _begin(client: JobSubmissionClient, line: str, environment: dict[str, Any]) -> str:
    """Submit the job, to a cluster that may just be starting; its id. Raises RunFailed."""
    attempts = Retrying(
        retry=retry_if_exception_message(match=rf"(?s).*{NOT_YET}"),
        stop=stop_after_delay(START_SECONDS),
        wait=wait_fixed(2),
        reraise=True,
    )
    try:
        return attempts(client.submit_job, entrypoint=line, runtime_env=environment)
    except RuntimeError as error:
        raise RunFailed(f"the cluster does not take the job: {str(error).strip().rstrip('.')}") from error


def how_to_go_on(job: str, address: str) -> str:
    """The commands that follow and stop a job from here."""
    where = f"--address {shlex.quote(redact(address))} {job}"
    mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    return f"follow it: {mode}ray job logs --follow {where}\nstop it:   {mode}ray job stop {where}"


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg submit`; the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _submit(arguments))


if __name__ == "__main__":
    sys.exit(main())
