"""What the recorder of a run says about its workers."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from rich.console import Console

from pipeline.executor.progress_bar import ProgressBar
from pipeline.executor.protocol import Job, WorkerReport
from pipeline.executor.recorder import RunRecorder
from pipeline.output.listing import Listing
from pipeline.output.plan import Plan
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage


def test_a_host_with_other_versions_of_libraries_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    out = Storage(url="memory://other-versions/out")
    job = Job(settings=LabelSettings(), worker=WorkerSettings(), source=out, out=out, listing="")
    first = WorkerReport(
        model_sha256="m", resolved={}, fingerprint="f", environment={"versions": {"torch": "2.4"}}, host="a"
    )
    other = dataclasses.replace(first, environment={"versions": {"torch": "2.5"}}, host="b")
    with (
        caplog.at_level(logging.WARNING),
        ProgressBar(0, console=Console(quiet=True), shown=False) as progress,
        RunRecorder(
            job=job,
            source="in",
            plan=Plan(shards=0, todo=[]),
            listing=Listing.of([]),
            before=None,
            progress=progress,
        ) as recorder,
    ):
        for report in (first, first, other, other):
            recorder.worker_ready(report)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("b has other versions of libraries than the host of the first worker")
    assert message.endswith("torch 2.5 instead of 2.4")
