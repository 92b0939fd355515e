"""The component that copies the logs of a run to where the cluster collects them, in overlays with and without a job.

Fluent Bit itself was not run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import KUBERAY, Document, cluster, kustomize, of_kind

LOGS = KUBERAY / "logs"


def built(folder: Path, overlay: str, *components: str) -> list[Document]:
    """Return the documents of an overlay with components."""
    kustomization = {
        "resources": [os.path.relpath(KUBERAY / "overlays" / overlay, folder)],
        "components": [os.path.relpath(KUBERAY / name, folder) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return kustomize(folder)


def pods_of_ray(documents: list[Document]) -> list[Document]:
    """Return the specs of the pods of the head and of each group of workers."""
    spec = cluster(documents)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@pytest.mark.parametrize(("overlay", "others"), [("aws", ()), ("cpu", ()), ("cpu", ("job",))])
def test_each_pod_gets_a_second_container_that_sees_the_logs_of_the_first(
    overlay: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    documents = built(tmp_path, overlay, "logs", *others)
    assert of_kind(documents, "Pod") == [], "the object that holds the container is not sent"
    (configuration,) = of_kind(documents, "ConfigMap")
    assert set(configuration["data"]) == {"fluent-bit.conf", "parsers.conf"}
    assert pods_of_ray(documents)
    for pod in pods_of_ray(documents):
        ray, logs = pod["containers"]
        assert ray["name"].startswith("ray-"), "KubeRay takes the first container for that of Ray"
        assert logs["name"] == "logs"
        shared = {"name": "ray-logs", "mountPath": "/tmp/ray"}
        assert shared in ray["volumeMounts"]
        assert shared in logs["volumeMounts"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["ray-logs"]["emptyDir"] == {}
        assert volumes["diffseg-fluent-bit"]["configMap"]["name"] == configuration["metadata"]["name"]
        assert logs["securityContext"]["readOnlyRootFilesystem"]


def test_the_other_overlays_are_unchanged_by_it(tmp_path: Path) -> None:
    for pod in pods_of_ray(built(tmp_path, "cpu")):
        assert [container["name"][:3] for container in pod["containers"]] == ["ray"]


def sections(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the sections of a configuration file of Fluent Bit, each with its settings."""
    found: list[tuple[str, dict[str, Any]]] = []
    for line in (LOGS / name).read_text().splitlines():
        if line.startswith("["):
            found.append((line.strip("[]"), {}))
        elif line.strip() and not line.startswith("#"):
            key, value = line.split(maxsplit=1)
            found[-1][1].setdefault(key, []).append(value)
    return found


def test_it_reads_the_files_of_the_driver_and_the_workers_and_parses_their_lines() -> None:
    parts = sections("fluent-bit.conf")
    assert [name for name, _ in parts] == ["SERVICE", "INPUT", "FILTER", "FILTER", "OUTPUT"]
    paths = parts[1][1]["path"][0].split(",")
    # `session_latest` is a link to the session, so that a pattern for sessions would read each file twice.
    logs = "/tmp/ray/session_latest/logs"
    assert paths == [f"{logs}/job-driver-*.log", f"{logs}/worker-*.err"]
    ((_, parser),) = sections("parsers.conf")
    assert parser["name"] == parts[2][1]["parser"]
    assert parser["format"] == ["json"]
