"""What operators see of a run on a cluster: metrics, the logs of the workers and the driver, and the dashboard.

A proxy holds the run at its first shard and before its end, until everything was seen that only a running run shows.
"""

from __future__ import annotations

import io
import json
import secrets
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clusters import Node, short_folder
from faulty_proxy import FaultyProxy
from file_server import file_server
from prometheus import Panel, Prometheus, prometheus_program, scraped
from runs import DEADLINE, FAST, environment

from pipeline.executor.metrics import METRICS
from pipeline.executor.progress_file import read_progress
from pipeline.storage import Storage

LATE_SECONDS = 60.0
"""How long values may be on their way when a run has ended."""

NEEDS_GPU = {"diffseg_worker_gpu_utilisation_ratio", "diffseg_worker_gpu_memory_ratio"}
"""Metrics that only workers with a GPU export."""
TAGS = sorted({tag for metric in METRICS for tag in metric.tags})
TARS = ("000000", "000001", "000002", "000003", "000004", "broken", "damaged")
"""The shards in their order. The second attempt at "broken" follows "damaged"."""
GAUGES = {"workers_asked": 1, "workers_ready": 1, "shards_in_hand": 1, "shards_waiting": len(TARS) - 1}
"""Values while the only worker has the first shard."""


class Cluster:
    """A head with a dashboard, which exports its metrics twice a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = environment() | token | {"TMPDIR": str(folder), "RAY_metrics_report_interval_ms": "500"}
        flags = ["--head", "--port", "0", "--include-dashboard", "true", "--dashboard-port", "0"]
        self.head = Node(folder / "0", flags, self.environment)
        self.head.wait()
        self.address = (self.head.folder / "ray_current_cluster").read_text().strip()
        self.discovery = self.head.folder / "prom_metrics_service_discovery.json"

    def label(self, source: str, out: Path) -> subprocess.Popen[bytes]:
        """Start `diffseg label` in another process, with its output in the files `out` and `err`."""
        words = ["--workers", "1", "--log-format", "json", "--json", "--address", self.address, *FAST]
        line = [sys.executable, "-m", "jobs.label", source, str(out), *words]
        with (self.folder / "out").open("wb") as stdout, (self.folder / "err").open("wb") as stderr:
            return subprocess.Popen(line, env=self.environment, cwd=self.folder, stdout=stdout, stderr=stderr)

    def worker_lines(self) -> list[dict[str, Any]]:
        """Return the log records of the workers, from Ray's session logs."""
        texts = [path.read_text() for path in (self.head.folder / "session_latest" / "logs").glob("worker-*.err")]
        records = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
        return [record for record in records if record["name"] == "pipeline.executor.worker"]


@dataclass(kw_only=True)
class ObservedRun:
    """A run and what was seen of it.

    Attributes:
        out: OUT of the run.
        discovery: Ray's service discovery file.
        started: The start of the run, in seconds since the epoch.
        summary: The JSON summary of the command.
        stderr: The other output of the command.
        worker_lines: The log records of the workers.
        kinds: The kind of each metric by its name.
        latest: The value of each series when it was last scraped, by its name and the value of its tag.
        gauges: The values of the series without a tag while the worker has the first shard.
    """

    out: Path
    discovery: Path
    started: float = field(default_factory=time.time)
    summary: dict[str, Any] = field(default_factory=dict)
    stderr: str = ""
    worker_lines: list[dict[str, Any]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    latest: dict[tuple[str, ...], float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)

    def scrape(self) -> None:
        """Record what the endpoints export now. Several processes may export one series."""
        for family in scraped(self.discovery):
            if not family.name.startswith("ray_diffseg_"):
                continue
            self.kinds[family.name] = family.type
            sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
            for sample in family.samples:
                key = (sample.name, *(sample.labels[tag] for tag in TAGS if tag in sample.labels))
                sums[key] += sample.value
            self.latest |= sums

    def by_tag(self, series: str) -> dict[str, float]:
        """Return the values of a series that has a tag, by the value of the tag."""
        return {key[1]: value for key, value in self.latest.items() if key[0] == series and len(key) > 1}

    def untagged(self) -> dict[str, float]:
        """Return the values of the series without a tag, by their names."""
        return {key[0].removeprefix("ray_diffseg_"): value for key, value in self.latest.items() if len(key) == 1}


@pytest.fixture(scope="module")
def proxy(scene_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """A proxy in front of an HTTP server for the tars, one of a damaged image, and a file that is not a tar."""
    folder = tmp_path_factory.mktemp("observed-source")
    for path in scene_tars.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with tarfile.open(folder / "damaged.tar", "w") as tar:
        member = tarfile.TarInfo("image.jpg")
        member.size = 9
        tar.addfile(member, io.BytesIO(b"no image!"))
    (folder / "broken.tar").write_bytes(b"this is no tar")
    with file_server(folder) as url, FaultyProxy(url) as between:
        yield between


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with short_folder() as folder:
        yield Cluster(folder)


@pytest.fixture(scope="module")
def scraper(cluster: Cluster) -> Iterator[Prometheus | None]:
    """A Prometheus that scrapes the cluster, or None if it is not installed."""
    if prometheus_program() is None:
        yield None
        return
    with Prometheus(cluster.folder / "prometheus", cluster.discovery) as running:
        yield running


@pytest.fixture(scope="module")
def observed(
    cluster: Cluster, scraper: Prometheus | None, proxy: FaultyProxy, tmp_path_factory: pytest.TempPathFactory
) -> ObservedRun:
    run = ObservedRun(out=tmp_path_factory.mktemp("observed"), discovery=cluster.discovery)
    proxy.hold("GET /000000.tar")
    driver = cluster.label(f"{proxy.endpoint}/{{{','.join(TARS)}}}.tar", run.out)

    def scrape_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert driver.poll() is None, (cluster.folder / "err").read_text()
            assert time.monotonic() < end, run.latest
            time.sleep(0.3)
            run.scrape()

    try:
        scrape_until(lambda: GAUGES.items() <= run.untagged().items() and "worker_rss_bytes" in run.untagged())
        run.gauges = run.untagged()
        proxy.hold("GET /000001.tar")
        scrape_until(lambda: run.untagged().get("images_total") == 4)
        if scraper is not None:  # which must see the counters of one shard first: a rate needs an increase
            scrape_until(lambda: bool(scraper.samples("ray_diffseg_step_seconds_count", run.started)))
        proxy.hold("GET /damaged.tar")
        scrape_until(lambda: bool(proxy.held))
        proxy.hold("GET /broken.tar")
        scrape_until(lambda: run.untagged().get("images_total") == 21)
        if scraper is not None:  # only the panel of failed shards is still empty
            scrape_until(lambda: all('outcome="failed"' in query for _, query in empty_panels(scraper, run.started)))
        proxy.release()
        driver.wait(DEADLINE)
    finally:
        driver.kill()
        driver.wait()
    run.stderr = (cluster.folder / "err").read_text()
    assert driver.returncode == 1, run.stderr  # one shard has failed
    run.summary = json.loads((cluster.folder / "out").read_text())
    end = time.monotonic() + LATE_SECONDS
    while not is_complete(run) and time.monotonic() < end:
        run.scrape()
        time.sleep(0.3)
    run.worker_lines = cluster.worker_lines()
    return run


def empty_panels(scraper: Prometheus, since: float) -> list[Panel]:
    """Return the panels that have had no data since a time, without those that need a GPU."""
    return [panel for panel in scraper.empty_panels(since) if not any(name in panel[1] for name in NEEDS_GPU)]


def is_complete(run: ObservedRun) -> bool:
    """Return True if all counters have the values of the whole run."""
    return (
        run.by_tag("ray_diffseg_rows_total") == run.summary["counts"]
        and run.by_tag("ray_diffseg_shards_total") == {"done": 6, "attempt_failed": 2, "failed": 1}
        and run.by_tag("ray_diffseg_step_seconds_count").get("total") == 6
        and run.untagged().get("images_total") == 21
        and run.untagged().get("workers_asked") == 0
    )


def test_every_metric_is_exported_with_its_kind_and_tags(observed: ObservedRun) -> None:
    exported = [metric for metric in METRICS if metric.name not in NEEDS_GPU]
    assert observed.kinds == {f"ray_{metric.name}": metric.kind for metric in exported}
    for metric in exported:
        for series in metric.series:
            assert any(key[0] == series and len(key) == 1 + len(metric.tags) for key in observed.latest), series


def test_the_metrics_are_those_of_the_run(observed: ObservedRun) -> None:
    assert observed.summary["counts"] == {"ok": 20, "undecodable": 1}
    assert observed.by_tag("ray_diffseg_rows_total") == observed.summary["counts"]
    assert observed.by_tag("ray_diffseg_shards_total") == {"done": 6, "attempt_failed": 2, "failed": 1}
    assert observed.by_tag("ray_diffseg_step_seconds_count")["total"] == 6
    assert observed.by_tag("ray_diffseg_step_seconds_count").keys() == observed.summary["seconds"].keys()
    assert observed.untagged()["images_total"] == 21
    assert observed.gauges.items() >= GAUGES.items()
    assert observed.untagged()["workers_asked"] == 0, "an ended run is not a driver that has died"
    assert observed.gauges["worker_rss_bytes"] > 2**26, "the libraries of the model alone take more"


def test_progress_json_describes_the_ended_run(observed: ObservedRun) -> None:
    report = read_progress(Storage(url=str(observed.out)))
    assert report is not None
    assert (report.state, report.done, report.failed, report.waiting, report.images) == ("ended", 6, 1, 0, 21)
    assert report.worker_rss > 2**26
    assert report.driver_rss > 2**20


def test_workers_log_each_attempt_with_its_fields(observed: ObservedRun) -> None:
    actual = Counter(
        (line["shard"], line["attempt"], line["message"].split(",")[0].split(":")[0].split()[2])
        for line in observed.worker_lines
    )
    good = [f"{number:06d}" for number in range(5)] + ["damaged"]
    expected = Counter({(shard, 1, word): 1 for shard in good for word in ("started", "committed")})
    expected += Counter({("broken", attempt, word): 1 for attempt in (1, 2, 3) for word in ("started", "failed")})
    assert actual == expected
    for line in observed.worker_lines:
        assert line["host"] == socket.gethostname()
        assert line["pid"] == line["process"]
        assert line["actor_id"], "Ray's own fields are there as well"
        assert ("started" in line["message"]) != ({"rows", "seconds"} <= line.keys())


def test_the_driver_logs_json_and_nothing_else(observed: ObservedRun) -> None:
    lines = [json.loads(line) for line in observed.stderr.splitlines()]
    done = {line["shard"]: line for line in lines if line["levelname"] == "INFO" and "shard" in line}
    assert {shard: line["rows"] for shard, line in done.items()} == {f"{n:06d}": 4 for n in range(5)} | {"damaged": 1}
    failed = [(line["shard"], line["attempt"]) for line in lines if line["levelname"] == "WARNING"]
    assert failed == [("broken", 1), ("broken", 2), ("broken", 3)]


@pytest.mark.metrics
def test_every_panel_of_the_dashboard_has_data(observed: ObservedRun, scraper: Prometheus | None) -> None:
    if scraper is None:
        pytest.skip("Prometheus is not on PATH: apt-get install prometheus")
    end = time.monotonic() + LATE_SECONDS
    while (empty := empty_panels(scraper, observed.started)) and time.monotonic() < end:
        time.sleep(0.5)  # Prometheus scrapes each second
    assert empty == []
