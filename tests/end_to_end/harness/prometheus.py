"""A Prometheus server with our scrape configuration, and the content of Ray's endpoints without one."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

INFRA = Path(__file__).parents[3] / "infra"
START_SECONDS = 60.0
Panel = tuple[str, str]
"""The title of a panel of the dashboard, and one of its queries."""


def prometheus_program() -> str | None:
    """Return the path of Prometheus, or None if it is not on PATH."""
    return shutil.which("prometheus")


def scraped(discovery: Path) -> list[Metric]:
    """Return the metrics of the endpoints in Ray's service discovery file, without those that do not answer."""
    if not discovery.exists():
        return []
    metrics: list[Metric] = []
    targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
    for target in targets:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                metrics += text_string_to_metric_families(answer.read().decode())
        except OSError:
            continue
    return metrics


def panels() -> list[Panel]:
    """Return the title and the query of everything that the dashboard draws."""
    board = json.loads((INFRA / "grafana" / "diffseg.json").read_text())
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]


class Prometheus:
    """A server that scrapes the endpoints of a service discovery file each second, as a context manager."""

    def __init__(self, folder: Path, discovery: Path) -> None:
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = (INFRA / "prometheus" / "prometheus.yml").read_text()
        assert "/tmp/ray/prom_metrics_service_discovery.json" in config
        config = config.replace("/tmp/ray/prom_metrics_service_discovery.json", str(discovery)).replace("15s", "1s")
        (folder / "prometheus.yml").write_text(config)
        self._url, self._folder = f"http://127.0.0.1:{port}", folder
        flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(prometheus_program()), *flags, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )

    def __enter__(self) -> Prometheus:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self._url}/-/ready", timeout=5).close()
                return self
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if self._process.poll() is not None or time.monotonic() > end:
                    self.__exit__()
                    raise RuntimeError((self._folder / "log").read_text()) from error
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def samples(self, query: str, since: float) -> list[tuple[dict[str, str], list[float]]]:
        """Return the labels and values of the series of a query of the dashboard, at each second since a time."""
        query = query.replace("$__rate_interval", "10s").replace("$SessionName", ".*")
        parameters = {"query": query, "start": since, "end": time.time(), "step": 1}
        url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        all_series = [(series["metric"], [float(value) for _, value in series["values"]]) for series in result]
        return [(labels, kept) for labels, values in all_series if (kept := [v for v in values if not math.isnan(v)])]

    def empty_panels(self, since: float) -> list[Panel]:
        """Return the panels of the dashboard that have had no data since a time."""
        return [panel for panel in panels() if not self.samples(panel[1], since)]
