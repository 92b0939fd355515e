"""The command that a submitted job runs on the cluster."""

from __future__ import annotations

from pathlib import Path

from jobs.submission.client import SubmissionRefused

PACKAGES = ("diffseg", "pipeline", "jobs")
"""The packages of this program."""


def program(working_dir: Path | None) -> list[str]:
    """Return the words that start `diffseg label` on the cluster.

    The command that the nodes have installed does not import from the current folder. A checkout of this package as the
    working directory is used instead of it.

    Raises:
        SubmissionRefused: The working directory has a module of the user that would hide a package of this program,
            because Ray puts the working directory first into the import path of the job and its workers.
    """
    if working_dir is None:
        return ["diffseg", "label"]
    if (working_dir / "jobs" / "label.py").is_file():
        return ["python", "-m", "jobs.label"]
    names = [f"{package}{ending}" for package in PACKAGES for ending in ("", ".py")]
    if present := [name for name in names if (working_dir / name).exists()]:
        raise SubmissionRefused(
            f"--working-dir {working_dir}: {', '.join(present)} would hide the packages of this program on the nodes; "
            "rename it, or send another folder"
        )
    return ["diffseg", "label"]
