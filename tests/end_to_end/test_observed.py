"""What can be seen of a run on a cluster: metrics, Ray's and the driver's logs, and the dashboard's panels."""

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clusters import Node, short_folder
from prometheus import Prometheus, panels, program, scraped
from runs import DEADLINE, environment

from pipeline.executor.metrics import METRICS
from pipeline.executor.progress_file import read_progress
from pipeline.storage import Storage

SETTLE_SECONDS = 60.0
"""For numbers that are on their way when a run ends."""

TAGS = sorted({tag for metric in METRICS for tag in metric.tags})

LONG_ENOUGH = ("--device", "cpu", "--resolution", "256", "--tau", "0.05")
"""Five seconds or more of labelling, so that what is exported twice a second shows shards in hand."""


class Cluster:
    """A head with its dashboard, which tells its numbers each second, and a Prometheus if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = environment() | token | {"TMPDIR": str(folder), "RAY_metrics_report_interval_ms": "500"}
        flags = ["--head", "--port", "0", "--include-dashboard", "true", "--dashboard-port", "0"]
        self.head = Node(folder / "0", flags, self.environment)
        self.head.wait()
        self.address = (self.head.folder / "ray_current_cluster").read_text().strip()
        self.discovery = self.head.folder / "prom_metrics_service_discovery.json"

    def label(self, source: Path, out: Path) -> subprocess.Popen[bytes]:
        """`diffseg label` in a process of its own; its output goes to the files `out` and `err`."""
        words = ["--workers", "1", "--log-format", "json", "--json", "--address", self.address, *LONG_ENOUGH]
        line = [sys.executable, "-m", "jobs.label", str(source), str(out), *words]
        with (self.folder / "out").open("wb") as stdout, (self.folder / "err").open("wb") as stderr:
            return subprocess.Popen(line, env=self.environment, cwd=self.folder, stdout=stdout, stderr=stderr)

    def worker_lines(self) -> list[dict[str, Any]]:
        """What workers have logged of their shards, from Ray's session logs."""
        texts = [path.read_text() for path in (self.head.folder / "session_latest" / "logs").glob("worker-*.err")]
        records = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
        return [record for record in records if record["name"] == "pipeline.executor.worker"]


@dataclass(kw_only=True)
class Observed:
    """A run, and what was seen of it: kinds by name, and the largest values by series and the value of its tag."""

    out: Path
    discovery: Path
    began: float = field(default_factory=time.time)
    summary: dict[str, Any] = field(default_factory=dict)
    stderr: str = ""
    worker_lines: list[dict[str, Any]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    seen: dict[tuple[str, ...], float] = field(default_factory=dict)

    def look(self) -> None:
        """Note what the endpoints tell now; several processes may tell of one series."""
        for family in scraped(self.discovery):
            if not family.name.startswith("ray_diffseg_"):
                continue
            self.kinds[family.name] = family.type
            sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
            for sample in family.samples:
                key = (sample.name, *(sample.labels[tag] for tag in TAGS if tag in sample.labels))
                sums[key] += sample.value
            self.seen |= {key: max(value, self.seen.get(key, 0.0)) for key, value in sums.items()}

    def by_tag(self, series: str) -> dict[str, float]:
        """The values of a series that has a tag."""
        return {key[1]: value for key, value in self.seen.items() if key[0] == series and len(key) > 1}


@pytest.fixture(scope="module")
def source(scene_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five tars, one with an image that is none, and a file that is no tar."""
    folder = tmp_path_factory.mktemp("observed-source")
    for path in scene_tars.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with tarfile.open(folder / "damaged.tar", "w") as tar:
        member = tarfile.TarInfo("image.jpg")
        member.size = 9
        tar.addfile(member, io.BytesIO(b"no image!"))
    (folder / "broken.tar").write_bytes(b"this is no tar")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with short_folder() as folder:
        yield Cluster(folder)


@pytest.fixture(scope="module")
def scraper(cluster: Cluster) -> Iterator[Prometheus | None]:
    if program() is None:
        yield None
        return
    with Prometheus(cluster.folder / "prometheus", cluster.discovery) as running:
        yield running


@pytest.fixture(scope="module")
def observed(
    cluster: Cluster, scraper: Prometheus | None, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    run = Observed(out=tmp_path_factory.mktemp("observed"), discovery=cluster.discovery)
    driver = cluster.label(source, run.out)
    try:
        end = time.monotonic() + DEADLINE
        while driver.poll() is None and time.monotonic() < end:
            run.look()
            time.sleep(0.3)
    finally:
        driver.kill()
        driver.wait()
    run.stderr = (cluster.folder / "err").read_text()
    assert driver.returncode == 1, run.stderr  # one shard has failed
    run.summary = json.loads((cluster.folder / "out").read_text())
    end = time.monotonic() + SETTLE_SECONDS
    while run.by_tag("ray_diffseg_rows_total") != run.summary["counts"] and time.monotonic() < end:
        run.look()
        time.sleep(0.3)
    run.worker_lines = cluster.worker_lines()
    return run


def test_every_metric_is_exported_with_its_kind_and_tags(observed: Observed) -> None:
    assert observed.kinds == {f"ray_{metric.name}": metric.kind for metric in METRICS}
    for metric in METRICS:
        for series in metric.series:
            assert any(key[0] == series and len(key) == 1 + len(metric.tags) for key in observed.seen), series


def test_the_numbers_are_those_of_the_run(observed: Observed) -> None:
    assert observed.summary["counts"] == {"ok": 20, "undecodable": 1}
    assert observed.by_tag("ray_diffseg_rows_total") == observed.summary["counts"]
    assert observed.by_tag("ray_diffseg_shards_total") == {"done": 6, "attempt_failed": 2, "failed": 1}
    assert observed.by_tag("ray_diffseg_step_seconds_count")["total"] == 6
    assert observed.by_tag("ray_diffseg_step_seconds_count").keys() == observed.summary["seconds"].keys()
    seen = {key[0].removeprefix("ray_diffseg_"): value for key, value in observed.seen.items() if len(key) == 1}
    assert seen["images_total"] == 21
    assert (seen["workers_asked"], seen["workers_ready"], seen["shards_in_hand"]) == (1, 1, 1)
    assert 1 <= seen["shards_waiting"] <= 7
    assert seen["worker_rss_bytes"] > 2**26, "the model's libraries alone take more"


def test_progress_tells_of_the_run_to_its_end(observed: Observed) -> None:
    heard = read_progress(Storage(url=str(observed.out)))
    assert heard is not None
    assert (heard.state, heard.done, heard.failed, heard.waiting, heard.images) == ("ended", 6, 1, 0, 21)
    assert heard.worker_rss > 2**26
    assert heard.driver_rss > 2**20


def test_workers_log_each_attempt_with_its_fields(observed: Observed) -> None:
    found = Counter(
        (line["shard"], line["attempt"], line["message"].split(",")[0].split(":")[0].split()[2])
        for line in observed.worker_lines
    )
    good = [f"{number:06d}" for number in range(5)] + ["damaged"]
    expected = Counter({(shard, 1, word): 1 for shard in good for word in ("begun", "committed")})
    expected += Counter({("broken", attempt, word): 1 for attempt in (1, 2, 3) for word in ("begun", "failed")})
    assert found == expected
    for line in observed.worker_lines:
        assert line["host"] == socket.gethostname()
        assert line["pid"] == line["process"]
        assert line["actor_id"], "Ray's own fields are there as well"
        assert ("begun" in line["message"]) != ({"rows", "seconds"} <= line.keys())


def test_the_driver_logs_json_and_nothing_else(observed: Observed) -> None:
    lines = [json.loads(line) for line in observed.stderr.splitlines()]
    done = {line["shard"]: line for line in lines if line["levelname"] == "INFO" and "shard" in line}
    assert {shard: line["rows"] for shard, line in done.items()} == {f"{n:06d}": 4 for n in range(5)} | {"damaged": 1}
    failed = [(line["shard"], line["attempt"]) for line in lines if line["levelname"] == "WARNING"]
    assert failed == [("broken", 1), ("broken", 2), ("broken", 3)]


def test_every_panel_of_the_dashboard_has_data(observed: Observed, scraper: Prometheus | None) -> None:
    if scraper is None:
        pytest.skip("no prometheus on the PATH or at DIFFSEG_PROMETHEUS; Debian has it: apt-get install prometheus")
    end, without = time.monotonic() + SETTLE_SECONDS, panels()
    while without and time.monotonic() < end:  # it scrapes each second
        for panel in list(without):
            title, query = panel
            if series := scraper.samples(query, observed.began):
                without.remove(panel)
                values = {",".join(labels.values()): values[-1] for labels, values in series}
                print(f"{sum(len(values) for _, values in series):4} samples, last {values}: {title}: {query}")
        time.sleep(0.2)
    assert without == []
