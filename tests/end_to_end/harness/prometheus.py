"""A real Prometheus with our scrape configuration, and what Ray's endpoints say without one."""

from __future__ import annotations

import json
import math
import os
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


def program() -> str | None:
    """DIFFSEG_PROMETHEUS, or what is on the PATH."""
    return shutil.which(os.environ.get("DIFFSEG_PROMETHEUS") or "prometheus")


def scraped(discovery: Path) -> list[Metric]:
    """What the endpoints tell that Ray names in its service discovery file; those that do not answer tell nothing."""
    if not discovery.exists():
        return []
    found: list[Metric] = []
    targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
    for target in targets:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                found += text_string_to_metric_families(answer.read().decode())
        except OSError:
            continue
    return found


def panels() -> list[tuple[str, str]]:
    """Title and query of all that the dashboard draws."""
    board = json.loads((INFRA / "grafana" / "diffseg.json").read_text())
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]


class Prometheus:
    """Scrapes each second what the discovery file names; use as a context manager."""

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
                [str(program()), *flags, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
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
        """The series that a query of the dashboard gives each second since then: labels, and the numbers."""
        query = query.replace("$__rate_interval", "10s").replace("$SessionName", ".*")
        asked = {"query": query, "start": since, "end": time.time(), "step": 1}
        with urllib.request.urlopen(f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(asked)}") as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        found = [(one["metric"], [float(value) for _, value in one["values"]]) for one in result]
        return [(labels, kept) for labels, values in found if (kept := [v for v in values if not math.isnan(v)])]
