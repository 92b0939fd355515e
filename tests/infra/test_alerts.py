"""The alerts: Prometheus evaluates them on the series of alerts_test.yaml, and the runbook explains each."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import INFRA, ROOT

from pipeline.executor.metrics import METRICS

PROMETHEUS = INFRA / "prometheus"
SERIES_TEST = Path(__file__).parent / "alerts_test.yaml"
(GROUP,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
ALERTS: list[dict[str, Any]] = GROUP["rules"]
RAY_LABELS = {"SessionName", "ray_io_cluster"}
"""Labels that Ray and podmonitor.yaml add to every series."""


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command of Prometheus that checks files."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH: apt-get install prometheus")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.metrics
def test_each_alert_fires_for_its_trouble_and_for_no_healthy_run() -> None:
    tested = promtool("test", "rules", SERIES_TEST)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    cases = [case for test in yaml.safe_load(SERIES_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires} == {
            alert["alert"] for alert in ALERTS
        }


@pytest.mark.metrics
def test_prometheus_accepts_the_configuration_with_its_rules() -> None:
    checked = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


def test_the_operator_gets_the_same_rules() -> None:
    rule = yaml.safe_load((PROMETHEUS / "prometheusrule.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == {"groups": [GROUP]}


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_uses_exported_series_and_has_a_section_in_the_runbook(alert: dict[str, Any]) -> None:
    series = {name: metric for metric in METRICS for name in metric.series}
    named = set(re.findall(r"\bray_diffseg_\w+", alert["expr"]))
    assert named <= series.keys()
    selected = set(re.findall(r"\{(\w+)=", alert["expr"]))
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", alert["expr"]) for label in group.split(", ")}
    assert selected <= {tag for name in named for tag in series[name].tags}
    assert grouped == RAY_LABELS
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()
    assert f"## {alert['alert']}\n" in (ROOT / page).read_text()
