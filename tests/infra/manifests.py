"""Reads infra/: the overlays as Kustomize builds them, their pods, other manifests, and every command in them."""

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
JOBS = [name for name in OVERLAYS if name.endswith("-job")]
LAUNCHERS = sorted((INFRA / "cluster-launcher").glob("*.yaml"))
PLAIN = sorted(
    path
    for path in INFRA.rglob("*.yaml")
    if path.relative_to(INFRA).parts[0] != "cluster-launcher"
    and path.name not in ("kustomization.yaml", "operator-values.yaml", "cluster-is-in-the-job.yaml")
)
"""Manifests that `kubectl apply --filename` or Kustomize reads."""

Document = dict[str, Any]


def kustomize(folder: Path) -> list[Document]:
    """Return the documents that `kubectl apply -k` would send. Without kubectl, which has Kustomize, skip the test."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl, which contains Kustomize: apt-get install kubernetes-client")
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@functools.cache
def overlay(name: str) -> list[Document]:
    """Return the documents of an overlay."""
    return kustomize(KUBERAY / "overlays" / name)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """Return the documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def cluster(documents: list[Document]) -> Document:
    """Return the spec of the RayCluster, which may be part of a RayJob."""
    (ray,) = of_kind(documents, "RayCluster") + of_kind(documents, "RayJob")
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def pods(documents: list[Document]) -> dict[str, Document]:
    """Return the templates of all pods: head, submitter, and the name of each group of workers."""
    spec = cluster(documents)
    templates = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    templates["head"] = spec["headGroupSpec"]["template"]
    for job in of_kind(documents, "RayJob"):
        templates["submitter"] = job["spec"]["submitterPodTemplate"]
    return templates


def worker_groups(documents: list[Document]) -> dict[str, Document]:
    """Return the groups of workers by name; the first is the preferred one."""
    return {group["groupName"]: group for group in cluster(documents)["workerGroupSpecs"]}


def container(template: Document) -> Document:
    """Return the only container of a template of pods."""
    (only,) = template["spec"]["containers"]
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
        for flags, group in ((("--head",), spec["headGroupSpec"]), *(((), each) for each in spec["workerGroupSpecs"])):
            params = [f"--{flag}={value}" for flag, value in group["rayStartParams"].items()]
            params += [f"--labels={key}={value}" for key, value in group.get("labels", {}).items()]
            yield Line(name, ("ray", "start", *flags, *params, "--block", "--metrics-export-port=8080"))
    for path in LAUNCHERS:
        config = launcher(path)
        for kind in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
            for text in config[f"{kind}_commands"]:
                yield from simple_commands(path.name, text)
