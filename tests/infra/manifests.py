"""What infra/ says: overlays as Kustomize makes them, their pods, and every command that stands in a manifest."""

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
    """The documents that `kubectl apply -k` would send; skips where there is no kubectl, which has Kustomize in it."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here, so no Kustomize")
    made = subprocess.run(
        ["kubectl", "kustomize", KUBERAY / "overlays" / name], capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    """The documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def cluster(documents: list[Document]) -> Document:
    """The spec of the RayCluster, by itself or in a RayJob."""
    (ray,) = of_kind(documents, "RayCluster") + of_kind(documents, "RayJob")
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def pods(documents: list[Document]) -> dict[str, Document]:
    """The specs of all pods by the role that they have: head, worker, submitter."""
    spec = cluster(documents)
    (worker,) = spec["workerGroupSpecs"]
    found = {"head": spec["headGroupSpec"]["template"]["spec"], "worker": worker["template"]["spec"]}
    for job in of_kind(documents, "RayJob"):
        found["submitter"] = job["spec"]["submitterPodTemplate"]["spec"]
    return found


def container(pod: Document) -> Document:
    """The only container of a pod."""
    (only,) = pod["containers"]
    return only


def launcher(path: Path) -> Document:
    """A file of Ray's cluster launcher."""
    return yaml.safe_load(path.read_text())


def commands() -> Iterator[Line]:
    """Every command in every manifest, those that KubeRay makes of rayStartParams too."""
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
