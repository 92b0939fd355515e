"""Label images on a Ray cluster from any machine, by submitting `diffseg label` as a job.

diffseg submit SRC OUT --address http://HEAD:8265 [any option of `diffseg label`]

The options of `diffseg label` are checked on this machine before anything is sent. The nodes take the package from
their image, or from the folder that --working-dir sends. Without --detach the command prints the log of the job until
the job ends, and exits with the exit code of the job.

Exit codes:
  0: every shard is done, or with --detach the job is submitted.
  1: some shards failed, or more samples failed than --allowed-failures permits.
  2: wrong usage, or refused, on this machine or by the job.
  143: the job was stopped.
  130: Ctrl-C on this machine; the job continues.
  75: the cluster no longer answers; the job may continue.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import tyro
from packaging.requirements import Requirement

from jobs.common import OK, guarded
from jobs.estimate import SpeedFlags, print_estimate
from jobs.label import LabelCommand
from jobs.label import parse as parse_label
from jobs.streams import print_text
from jobs.submission.client import SubmissionRefused, connect, follow_and_stop_commands, job_server_address, start_job
from jobs.submission.http import http_options
from jobs.submission.program import program
from jobs.submission.working_dir import pack_folder
from pipeline.readers.sources import source_parts
from pipeline.storage import Storage
from pipeline.storage.redaction import MASK, is_secret_name, redact
from pipeline.storage.urls import SourceError, local_path, scheme
from pipeline.worker_pools import WorkerSpec, parse_worker_specs

STOP_SECONDS = 60
"""Time for a stopped driver to end its workers before Ray kills it; Ray's default of 3 s is too short for that."""

_STORE_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


@dataclass(frozen=True, kw_only=True)
class SubmitCommand(SpeedFlags):
    """The flags of `diffseg submit`, apart from those of `diffseg label`."""

    address: str | None = None
    """URL of the dashboard of the cluster, http://HEAD:8265; default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS."""
    working_dir: Path | None = None
    """Folder to send to the cluster, such as a checkout of this package; it becomes the current folder of the job.
    The files that .gitignore or .rayignore name are not sent, nor are tars, Parquet files, tests, pages and caches."""
    exclude: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Pattern of further files not to send, as in .gitignore."""
    pip: bool = False
    """Let every node install the requirements of this package first; an image that contains them starts faster."""
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """Environment variable of this machine to set for the job and its workers.
    It must not hold a secret, because Ray shows the variables of a job."""
    metadata: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """What Ray stores with the job, such as team=vision or cost-center=42, so that costs can be attributed to it.
    Everybody who may list the jobs can read it."""
    job_name: str | None = None
    """Name of the job on Ray's dashboard and in its list of jobs; default: its id."""
    submission_id: str | None = None
    """Id of the job, such as that of a workflow's step; default: one that Ray chooses. The cluster refuses an id that
    it knows already, so that a step which is repeated does not start a second job."""
    headers: str | None = None
    """HTTP headers for a proxy in front of the dashboard: a JSON object, or a file that holds one, which keeps secrets
    out of the list of processes. Default: $RAY_JOB_HEADERS, as for `ray job`."""
    cookies: str | None = None
    """HTTP cookies for such a proxy: a JSON object, or a file that holds one."""
    verify: str = "true"
    """Certificates to trust in addresses with https: true for those of this machine, the path of a file or folder of
    them, or false for any certificate, which is not safe."""
    dry_run: bool = False
    """Submit nothing: print the job and an estimate of the run, with the time if --images-per-second is given."""
    detach: bool = False
    """Print the id of the job and exit, instead of following its log."""


def parse(argv: list[str]) -> tuple[SubmitCommand, LabelCommand, list[str]]:
    """Parse the command line of `diffseg submit`.

    Options that `diffseg label` does not accept end the process with exit code 2.

    Returns:
        The flags of `diffseg submit`, those of `diffseg label`, and the words that the latter were parsed from.

    Raises:
        SubmissionRefused: The options of the job contain a secret.
        SourceError: SRC or OUT is a relative path, which means nothing on the cluster.
    """
    command, label_words = tyro.cli(
        SubmitCommand,
        args=argv,
        prog="diffseg submit",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=True,
    )
    label = parse_label(label_words)
    _refuse_secrets(label, shlex.join(label_words))
    _refuse_relative_paths(label)
    return command, label, label_words


def _refuse_secrets(label: LabelCommand, line: str) -> None:
    if label.storage_options:
        raise SubmissionRefused(
            "--storage-options would stay in Ray's list of jobs, where everybody can read it: set the environment "
            "variables of the store on the nodes (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …), give the nodes an identity "
            "in the cloud, or pass a variable without a secret as --env NAME"
        )
    if redact(line) != line:
        raise SubmissionRefused(
            f"{redact(line)}: a password or signature in a URL ({MASK}) would stay in Ray's list of jobs; set the "
            "environment variables of the store on the nodes, or give the nodes an identity in the cloud"
        )


def _refuse_relative_paths(label: LabelCommand) -> None:
    for url in (*source_parts(label.source), label.out):
        if not scheme(url) and not os.path.isabs(local_path(url)):
            raise SourceError(
                f"{url} is a relative path on this machine, which the cluster cannot read: name a URL such as "
                "s3://bucket/folder, or the absolute path of a folder that all nodes share"
            )


def runtime_environment(command: SubmitCommand, label: LabelCommand) -> dict[str, Any]:
    """Return Ray's `runtime_env` for the job, without the working directory."""
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **_variables(command.env)}
    environment: dict[str, Any] = {"env_vars": variables}
    if command.pip:
        environment["pip"] = requirements((*source_parts(label.source), label.out, label.label.model))
    return environment


def _variables(names: Sequence[str]) -> Mapping[str, str]:
    """Return these environment variables of this process. Raises SubmissionRefused for a secret."""
    for name in names:
        if name not in os.environ:
            raise SubmissionRefused(f"--env {name}: no such variable is set on this machine")
        if is_secret_name(name) or redact(os.environ[name]) != os.environ[name]:
            raise SubmissionRefused(
                f"--env {name}: this looks like a secret, and Ray's dashboard and list of jobs show the variables of a "
                "job; set it in the environment of the nodes (on Kubernetes: secretKeyRef)"
            )
    return {name: os.environ[name] for name in names}


def job_metadata(pairs: Sequence[str]) -> dict[str, str]:
    """Return what Ray stores with the job, from NAME=VALUE texts. Raises SubmissionRefused."""
    stored = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise SubmissionRefused(f"--metadata {redact(pair)}: expected NAME=VALUE, such as team=vision")
        if redact(pair) != pair:
            raise SubmissionRefused(
                f"--metadata {name}: this looks like a secret, and Ray's dashboard and list of jobs show the metadata"
            )
        stored[name] = value
    return stored


def requirements(urls: Sequence[str]) -> list[str]:
    """Return the requirements of this package for pip, with the drivers of the stores of some URLs, without Ray."""
    extras = {"", *(_STORE_EXTRAS[scheme(url)] for url in urls if scheme(url) in _STORE_EXTRAS)}
    lines = []
    for line in metadata.requires("diffseg-pipeline") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        if applies and requirement.name != "ray":  # each node keeps the Ray that it runs on
            requirement.marker = None
            lines.append(str(requirement))
    return lines


def _submit(argv: list[str]) -> int:
    command, label, words = parse(argv)
    environment, about = runtime_environment(command, label), job_metadata(command.metadata)
    about |= {"job_name": command.job_name} if command.job_name else {}  # Ray's own key for it
    entrypoint = shlex.join([*program(command.working_dir), *words])
    if command.dry_run:
        return _dry_run(command, label, entrypoint, environment)
    address = job_server_address(command.address)
    http = http_options(command.headers, command.cookies, command.verify)
    client = connect(address, http)
    for path in (label.source, label.out):
        if not scheme(path):
            print_text(f"{path}: assuming that all nodes share a folder at this path", error=True)
    with tempfile.TemporaryDirectory(prefix="diffseg-submit-") as folder:
        if command.working_dir:
            package = Path(folder) / "working-dir.zip"
            print_text(pack_folder(command.working_dir, package, exclude=command.exclude), error=True)
            environment["working_dir"] = str(package)
        job = start_job(client, entrypoint, environment, about, command.submission_id)
    commands = follow_and_stop_commands(job, address, http)
    if command.detach:
        print_text(job)
        print_text(commands, error=True)
        wait = "once the first worker has loaded the model"
        print_text(f"progress:  diffseg status {shlex.quote(redact(label.out))}, {wait}", error=True)
        return OK
    from jobs.submission.log import follow

    print_text(f"job {job} at {redact(address)}", error=True)
    return follow(client, job, commands)


def _dry_run(command: SubmitCommand, label: LabelCommand, entrypoint: str, environment: Mapping[str, Any]) -> int:
    """Print what would be submitted, and an estimate of the run as far as this machine can list SRC."""
    from pipeline.estimate import estimate, given_speed, survey_source

    print_text(f"entry point: {entrypoint}")
    print_text(f"runtime environment: {json.dumps(environment)}")
    survey = survey_source(label.source, Storage(url="."), label.label, samples=1)
    workers = sum(spec.max_workers or 1 for spec in parse_worker_specs(label.run.workers, WorkerSpec()))
    print_estimate(estimate(survey, given_speed(command.images_per_second), workers=workers, price=command.price))
    return OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg submit` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _submit(arguments))


if __name__ == "__main__":
    sys.exit(main())
