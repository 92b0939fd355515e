from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import schemas
import yaml
from manifests import INFRA, OVERLAYS, PLAIN, Document, cluster, container, of_kind, overlay, pods


def documents_of(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_field_of_an_overlay_is_known(name: str) -> None:
    assert [problem for document in overlay(name) for problem in schemas.problems(document)] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_knows_every_field_of_the_pods(name: str) -> None:
    options = cluster(overlay(name))["autoscalerOptions"]
    of_container = ("env", "resources", "securityContext", "volumeMounts")
    autoscaler = {"name": "autoscaler", **{field: options[field] for field in of_container}}
    for role, template in pods(overlay(name)).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
        if role == "head":
            pod["spec"]["containers"].append(autoscaler)
        assert schemas.problems(pod) == [], role


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_field_of_a_plain_manifest_is_known(path: Path) -> None:
    assert [problem for document in documents_of(path) for problem in schemas.problems(document)] == []


def test_the_plain_manifests_include_those_of_each_kind() -> None:
    names = {path.name for path in PLAIN}
    assert names >= {"raycluster.yaml", "rayjob.yaml", "networkpolicy.yaml", "quotas.yaml", "podmonitor.yaml"}


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ((), "suspended"),
        (("spec",), "backofLimit"),
        (("spec", "submitterConfig"), "backofLimit"),
        (("spec", "rayClusterSpec"), "autoscaler"),
        (("spec", "rayClusterSpec", "authOptions"), "secret"),
        (("spec", "rayClusterSpec", "autoscalerOptions"), "idleTimeout"),
        (("spec", "rayClusterSpec", "headGroupSpec"), "rayStartParam"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1), "maxReplica"),
    ],
)
def test_a_misspelt_field_of_a_custom_resource_is_noticed(path: tuple[Any, ...], wrong: str) -> None:
    job = copy.deepcopy(documents_of(INFRA / "kuberay" / "job" / "rayjob.yaml")[0])
    (ray,) = documents_of(INFRA / "kuberay" / "base" / "raycluster.yaml")
    job["spec"]["rayClusterSpec"] = copy.deepcopy(ray["spec"])
    assert schemas.problems(job) == []
    node = job
    for step in path:
        node = node[step]
    node[wrong] = 1
    (problem,) = schemas.problems(job)
    assert repr(wrong) in problem


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0, "num-cpus"),
        (("workerGroupSpecs", 0, "priority"), "10", "priority"),
        (("autoscalerOptions", "version"), "v3", "version"),
    ],
)
def test_a_wrong_value_is_noticed(path: tuple[Any, ...], value: Any, field: str) -> None:
    (ray,) = copy.deepcopy(documents_of(INFRA / "kuberay" / "base" / "raycluster.yaml"))
    node = ray["spec"]
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    (problem,) = schemas.problems(ray)
    assert field in problem


def test_a_missing_field_is_noticed() -> None:
    (ray,) = copy.deepcopy(documents_of(INFRA / "kuberay" / "base" / "raycluster.yaml"))
    del ray["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    (problem,) = schemas.problems(ray)
    assert "'maxReplicas' is a required property" in problem


@pytest.mark.parametrize(
    ("path", "wrong"), [(("spec",), "terminationGracePeriod"), (("spec", "containers", 0, "resources"), "limit")]
)
def test_a_misspelt_field_of_a_pod_is_noticed(path: tuple[Any, ...], wrong: str) -> None:
    (ray,) = documents_of(INFRA / "kuberay" / "base" / "raycluster.yaml")
    pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(ray["spec"]["headGroupSpec"]["template"])}
    node = pod
    for step in path:
        node = node[step]
    node[wrong] = 1
    (problem,) = schemas.problems(pod)
    assert wrong in problem


def test_the_quota_of_the_team_holds_its_job_at_its_full_size() -> None:
    documents = documents_of(INFRA / "kueue" / "quotas.yaml")
    (queue,) = of_kind(documents, "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    flavors = {
        flavor["metadata"]["name"]: flavor["spec"]["nodeLabels"] for flavor in of_kind(documents, "ResourceFlavor")
    }
    requested = {name: dict.fromkeys(group["coveredResources"], 0.0) for name in flavors}
    job = overlay("aws-job-kueue")
    counts = {each["groupName"]: each["maxReplicas"] for each in cluster(job)["workerGroupSpecs"]}
    for role, template in pods(job).items():
        (flavor,) = [
            name for name, labels in flavors.items() if labels.items() <= template["spec"]["nodeSelector"].items()
        ]
        parts = [container(template), *([cluster(job)["autoscalerOptions"]] if role == "head" else [])]
        for part in parts:
            for resource, quantity in part["resources"]["requests"].items():
                requested[flavor][resource] += counts.get(role, 1) * amount(quantity)
    quotas = {
        flavor["name"]: {each["name"]: amount(each["nominalQuota"]) for each in flavor["resources"]}
        for flavor in group["flavors"]
    }
    for name, resources in requested.items():
        for resource, total in resources.items():
            assert total <= quotas[name][resource] <= 1.3 * total, (name, resource)


def amount(quantity: str | int) -> float:
    """Return a quantity of Kubernetes in units, or in GiB where it is a size."""
    text = str(quantity)
    for suffix, factor in (("Gi", 1.0), ("Mi", 1 / 1024), ("m", 0.001)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def test_a_job_of_kueue_starts_suspended_in_the_queue_of_the_quotas() -> None:
    quotas = documents_of(INFRA / "kueue" / "quotas.yaml")
    (job,) = of_kind(overlay("aws-job-kueue"), "RayJob")
    (queue,) = of_kind(quotas, "LocalQueue")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    priorities = {each["metadata"]["name"] for each in of_kind(quotas, "WorkloadPriorityClass")}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] in priorities
    assert [queue["spec"]["clusterQueue"]] == [each["metadata"]["name"] for each in of_kind(quotas, "ClusterQueue")]
