"""Tests of the exit codes of submitted jobs."""

from __future__ import annotations

import pytest
from ray.dashboard.modules.job.pydantic_models import JobType
from ray.job_submission import JobDetails, JobStatus

from jobs.submission.log import exit_code


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 143),
    ],
)
def test_a_finished_job_has_an_exit_code(
    status: JobStatus, driver: int | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobDetails(
        type=JobType.SUBMISSION, status=status, entrypoint="", driver_exit_code=driver, message="why it failed"
    )
    assert exit_code(job) == code
    assert ("why it failed" in capsys.readouterr().err) == (driver is None and status == JobStatus.FAILED)
