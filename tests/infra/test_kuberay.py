from __future__ import annotations

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
import schemas
from manifests import OVERLAYS, ROOT, Document, cluster, container, of_kind, overlay, pods

KUBERNETES = "1.32"
needs_schemas = pytest.mark.skipif(not schemas.FOLDER.is_dir(), reason="needs KubeRay's schemas in ../shared/schemas")


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return overlay(request.param)


@needs_schemas
def test_kuberay_knows_every_field(documents: list[Document]) -> None:
    (ray,) = of_kind(documents, "RayCluster") + of_kind(documents, "RayJob")
    assert schemas.problems(ray) == []


@needs_schemas
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ((), "backofLimit"),
        (("rayClusterSpec", "authOptions"), "secret"),
        (("rayClusterSpec", "workerGroupSpecs", 0), "maxReplica"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"), "terminationGracePeriod"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resources"), "limit"),
    ],
)
def test_a_misspelt_field_is_noticed(path: tuple[Any, ...], wrong: str) -> None:
    job = copy.deepcopy(of_kind(overlay("aws-job"), "RayJob")[0])
    node = job["spec"]
    for step in path:
        node = node[step]
    node[wrong] = 1
    (problem,) = schemas.problems(job)
    assert repr(wrong) in problem


@needs_schemas
def test_a_wrong_type_is_noticed() -> None:
    job = copy.deepcopy(of_kind(overlay("aws-job"), "RayJob")[0])
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    (problem,) = schemas.problems(job)
    assert "num-cpus" in problem


def test_kubernetes_knows_every_field(documents: list[Document]) -> None:
    for account in of_kind(documents, "ServiceAccount"):
        kubernetes_validate.validate(account, KUBERNETES, strict=True)
    for role, spec in pods(documents).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    wrong = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "automount": True}
    with pytest.raises(kubernetes_validate.ValidationError, match="automount"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_accounts_volumes_and_secrets_that_are_named_exist(documents: list[Document]) -> None:
    accounts = {account["metadata"]["name"] for account in of_kind(documents, "ServiceAccount")}
    for spec in pods(documents).values():
        assert spec.get("serviceAccountName") in {*accounts, None}
        mounts = {mount["name"] for mount in container(spec).get("volumeMounts", ())}
        assert mounts == {volume["name"] for volume in spec.get("volumes", ())}
    guide = (ROOT / "docs" / "cluster.md").read_text()
    created = set(re.findall(r"kubectl create secret generic (\S+)", guide))
    assert secrets(documents) == created
    token = cluster(documents)["authOptions"]["secretName"]
    assert f"create secret generic {token} --from-file=auth_token=" in guide


def secrets(documents: list[Document]) -> set[str]:
    """Return the names of all Secrets that the pods and Ray refer to."""
    sources = [source for spec in pods(documents).values() for source in container(spec).get("envFrom", ())]
    return {source["secretRef"]["name"] for source in sources} | {cluster(documents)["authOptions"]["secretName"]}


def test_all_pods_use_one_image(documents: list[Document]) -> None:
    (image,) = {container(spec)["image"] for spec in pods(documents).values()}
    assert image.startswith("registry.example.com/diffseg:")


def test_pods_are_unprivileged_and_isolated_from_their_node(documents: list[Document]) -> None:
    """This is the restricted Pod Security Standard of Kubernetes, which some namespaces enforce."""
    for role, spec in pods(documents).items():
        assert spec["securityContext"]["runAsNonRoot"], role
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, role
        limits = container(spec)["securityContext"]
        assert limits == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, role
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), role
        assert {kind for volume in spec.get("volumes", ()) for kind in volume} <= {"name", "emptyDir"}, role


def test_the_head_runs_no_workers_and_workers_are_autoscaled(documents: list[Document]) -> None:
    spec = cluster(documents)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    (group,) = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    assert pods(documents)["worker"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.endswith("-job")])
def test_a_job_starts_the_cluster_of_its_overlay_and_requests_as_many_workers_as_fit(name: str) -> None:
    documents = overlay(name)
    assert not of_kind(documents, "RayCluster")
    (job,) = of_kind(documents, "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster(overlay(name.removesuffix("-job")))
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0
    workers = re.search(r"--workers 1:(\d+)", job["spec"]["entrypoint"])
    limits = container(pods(documents)["worker"])["resources"]["limits"]
    workers_per_pod = limits["nvidia.com/gpu"] if "--device cuda" in job["spec"]["entrypoint"] else limits["cpu"]
    assert workers
    assert int(workers[1]) == int(workers_per_pod) * cluster(documents)["workerGroupSpecs"][0]["maxReplicas"]
