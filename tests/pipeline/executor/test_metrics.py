"""The metrics agree with the dashboard. end_to_end/test_observed.py tests them on a real Ray and Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.executor.gpu_meter import GpuUse
from pipeline.executor.metrics import METRICS, Metric, measure_worker
from pipeline.executor.protocol import WorkerProgress

INFRA = Path(__file__).parents[3] / "infra"
RAY_LABELS = {"SessionName", "NodeAddress"}
TARGETS = [
    target
    for panel in json.loads((INFRA / "grafana" / "diffseg.json").read_text())["panels"]
    for target in panel["targets"]
]
SERIES = {series: metric for metric in METRICS for series in metric.series}


def series_in(query: str) -> list[str]:
    return re.findall(r"\bray_\w+", query)


@pytest.mark.parametrize("target", TARGETS, ids=[target["expr"] for target in TARGETS])
def test_the_queries_of_the_dashboard_name_exported_metrics(target: dict[str, str]) -> None:
    query = target["expr"]
    named = series_in(query)
    assert named
    assert set(named) <= SERIES.keys()
    known = RAY_LABELS.union(*(SERIES[name].tags for name in named)) | {"le"}
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    selected = {label for group in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)(?:=|!)", group)}
    assert grouped | selected <= known
    assert "SessionName" in selected
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == grouped - {"le"}


def test_every_metric_is_on_the_dashboard_and_names_its_physical_unit() -> None:
    shown = {SERIES[name] for target in TARGETS for name in series_in(target["expr"])}
    assert shown == set(METRICS)
    assert all(metric.name.endswith(metric.unit) for metric in METRICS if metric.unit in ("seconds", "bytes", "ratio"))


def test_the_use_of_a_gpu_is_exported_only_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, float] = {}
    monkeypatch.setattr(Metric, "record", lambda metric, value, **tags: recorded.update({metric.name: value}))
    measure_worker(WorkerProgress(samples=0, waiting="", rss=7))
    assert recorded == {"diffseg_worker_rss_bytes": 7, "diffseg_worker_gpu_memory_bytes": 0}
    measure_worker(WorkerProgress(samples=0, waiting="", gpu=GpuUse(utilisation=0.9, memory=0.25)))
    assert recorded["diffseg_worker_gpu_utilisation_ratio"] == 0.9
    assert recorded["diffseg_worker_gpu_memory_ratio"] == 0.25


def test_without_ray_nothing_is_exported_and_nothing_is_printed() -> None:
    code = "import sys\nfrom pipeline.executor.metrics import METRICS\n"
    code += "for metric in METRICS: metric.record(1.0, **dict.fromkeys(metric.tags, 'x'))\n"
    code += "assert 'ray.util.metrics' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=540, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_prometheus_reads_the_file_of_ray_and_the_pod_monitor_the_port_of_kuberay() -> None:
    (job,) = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    monitor = yaml.safe_load((INFRA / "prometheus" / "podmonitor.yaml").read_text())
    assert (monitor["kind"], monitor["spec"]["podMetricsEndpoints"][0]["port"]) == ("PodMonitor", "metrics")
