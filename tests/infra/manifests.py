"""Reads infra/: the overlays as Kustomize builds them, their pods, and every command in a manifest."""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import Line, simple_commands

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERAY = INFRA / "kuberay"
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())
LAUNCHERS = sorted((INFRA / "cluster-launcher").glob("*.yaml"))

Document = dict[str, Any]


@functools.cache
def overlay(name: str) -> list[Document]:
    """Return the documents that `kubectl apply -k` would send. Without kubectl, which has Kustomize, skip the test."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl, which contains Kustomize")
    built = subprocess.run(
        ["kubectl", "kustomize", KUBERAY / "overlays" / name], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def cluster(documents: list[Document]) -> Document:
    """Return the spec of the RayCluster, which may be part of a RayJob."""
    (ray,) = of_kind(documents, "RayCluster") + of_kind(documents, "RayJob")
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def pods(documents: list[Document]) -> dict[str, Document]:
    """Return the specs of all pods by role: head, worker, submitter."""
    spec = cluster(documents)
    (worker,) = spec["workerGroupSpecs"]
    specs = {"head": spec["headGroupSpec"]["template"]["spec"], "worker": worker["template"]["spec"]}
    for job in of_kind(documents, "RayJob"):
        specs["submitter"] = job["spec"]["submitterPodTemplate"]["spec"]
    return specs


def container(pod: Document) -> Document:
    """Return the only container of a pod."""
    (only,) = pod["containers"]
    return only


def launcher(path: Path) -> Document:
    """Return the content of a file of Ray's cluster launcher."""
    return yaml.safe_load(path.read_text())


def commands() -> Iterator[Line]:
    """Yield every command in every manifest, including those that KubeRay builds from rayStartParams."""
    for name in OVERLAYS:
        documents = overlay(name)
        for job in of_kind(documents, "RayJob"):
            yield Line(name, tuple(shlex.split(job["spec"]["entrypoint"])))
        spec = cluster(documents)
        for flags, group in ((("--head",), spec["headGroupSpec"]), ((), spec["workerGroupSpecs"][0])):
            params = [f"--{flag}={value}" for flag, value in group["rayStartParams"].items()]
            params += [f"--labels={key}={value}" for key, value in group.get("labels", {}).items()]
            yield Line(name, ("ray", "start", *flags, *params, "--block", "--metrics-export-port=8080"))
        shell = container(pods(documents)["worker"])["lifecycle"]["preStop"]["exec"]["command"]
        yield from simple_commands(name, shell[-1])
    for path in LAUNCHERS:
        config = launcher(path)
        for kind in ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
            for text in config[f"{kind}_commands"]:
                yield from simple_commands(path.name, text)
