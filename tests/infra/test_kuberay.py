from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import schemas
import yaml
from manifests import (
    JOBS,
    KUBERAY,
    OVERLAYS,
    ROOT,
    Document,
    cluster,
    container,
    kustomize,
    of_kind,
    overlay,
    pods,
    worker_groups,
)

UNPRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    return overlay(request.param)


def test_accounts_volumes_and_secrets_that_are_named_exist(documents: list[Document]) -> None:
    accounts = {account["metadata"]["name"] for account in of_kind(documents, "ServiceAccount")}
    for template in pods(documents).values():
        assert template["spec"].get("serviceAccountName") in {*accounts, None}
        mounts = {mount["name"] for mount in container(template)["volumeMounts"]}
        assert mounts == {volume["name"] for volume in template["spec"]["volumes"]}
    guide = (ROOT / "docs" / "cluster.md").read_text()
    assert secrets(documents) == set(re.findall(r"kubectl create secret generic (\S+)", guide))
    token = cluster(documents)["authOptions"]["secretName"]
    assert f"create secret generic {token} --from-file=auth_token=" in guide


def secrets(documents: list[Document]) -> set[str]:
    """Return the names of all Secrets that the pods and Ray refer to."""
    sources = [source for template in pods(documents).values() for source in container(template).get("envFrom", ())]
    return {source["secretRef"]["name"] for source in sources} | {cluster(documents)["authOptions"]["secretName"]}


def test_head_and_submitter_run_the_small_image_of_the_same_version(documents: list[Document]) -> None:
    images = {role: container(template)["image"] for role, template in pods(documents).items()}
    assert {images[role] for role in ("head", "submitter") if role in images} == {images["head"]}
    assert images["head"].startswith("registry.example.com/diffseg:")
    assert images["head"].endswith("-cpu")
    assert {image.removesuffix("-cpu") for image in images.values()} == {images["head"].removesuffix("-cpu")}


def test_pods_are_unprivileged_and_isolated_from_their_node(documents: list[Document]) -> None:
    """This is the restricted Pod Security Standard of Kubernetes, which some namespaces enforce."""
    for role, template in pods(documents).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], role
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, role
        assert container(template)["securityContext"] == UNPRIVILEGED, role
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), role
        assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir"}, role
    assert cluster(documents)["autoscalerOptions"]["securityContext"] == UNPRIVILEGED


def test_the_folders_that_processes_write_to_are_volumes_of_a_stated_size(documents: list[Document]) -> None:
    """The root file system is read-only, and a pod that exceeds its request of storage may be evicted."""
    written = {"submitter": ["/tmp", "/home/ray"], "head": ["/tmp", "/home/ray"]}
    for role, template in pods(documents).items():
        paths = [mount["mountPath"] for mount in container(template)["volumeMounts"]]
        assert paths == written.get(role, ["/tmp", "/home/ray", "/cache"])
        limits = [volume["emptyDir"].get("sizeLimit", "0Gi") for volume in template["spec"]["volumes"]]
        requested = container(template)["resources"]["requests"]["ephemeral-storage"]
        assert gibibytes(requested) > sum(map(gibibytes, limits)), role
    options = cluster(documents)["autoscalerOptions"]
    assert [mount["mountPath"] for mount in options["volumeMounts"]] == written["head"]
    assert gibibytes(options["resources"]["requests"]["ephemeral-storage"]) > 0


def gibibytes(quantity: str) -> int:
    """Return the number in a quantity such as 8Gi."""
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_the_head_runs_no_workers_and_workers_are_autoscaled(documents: list[Document]) -> None:
    spec = cluster(documents)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_rays_drain_ends_before_the_grace_period_does(documents: list[Document]) -> None:
    for group in worker_groups(documents).values():
        worker = container(group["template"])
        (timeout,) = [
            each["value"] for each in worker["env"] if each["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        ]
        assert 0 < float(timeout) <= group["template"]["spec"]["terminationGracePeriodSeconds"] - 5
        assert "lifecycle" not in worker  # a hook would delay the signal on which Ray drains the node


def test_nothing_evicts_the_head_or_the_submitter(documents: list[Document]) -> None:
    """They end an attempt when they go, so neither autoscalers of nodes nor upgrades may move them."""
    budgets = [budget["spec"] for budget in of_kind(documents, "PodDisruptionBudget")]
    for role in {"head", "submitter"} & pods(documents).keys():
        metadata = pods(documents)[role]["metadata"]
        assert metadata["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }
        (budget,) = [each for each in budgets if each["selector"]["matchLabels"].items() <= metadata["labels"].items()]
        assert budget["minAvailable"] == 1
    assert len(budgets) == len({"head", "submitter"} & pods(documents).keys())


@pytest.mark.parametrize("name", ["aws", "gcp", "aws-job", "gcp-job", "aws-job-kueue"])
def test_only_the_preferred_workers_are_on_spot_machines(name: str) -> None:
    spot = {role for role, template in pods(overlay(name)).items() if is_on_spot(template["spec"])}
    assert spot == {"gpu"}
    preferred, fallback = worker_groups(overlay(name)).values()
    assert preferred["priority"] > fallback["priority"]
    assert preferred["maxReplicas"] > fallback["maxReplicas"]


def is_on_spot(spec: Document) -> bool:
    """Return whether a pod is bound to spot machines; a pod that is bound to neither kind fails the test."""
    labels = spec.get("nodeSelector", {})
    if capacity := labels.get("eks.amazonaws.com/capacityType"):
        return {"SPOT": True, "ON_DEMAND": False}[capacity]
    if labels.get("cloud.google.com/gke-spot"):
        return True
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "cloud.google.com/gke-spot", "operator": "DoesNotExist"}]}
    return False


def test_connections_come_from_ray_the_submitter_the_operator_and_prometheus_alone(documents: list[Document]) -> None:
    (policy,) = of_kind(documents, "NetworkPolicy")
    nodes, job, metrics = policy["spec"]["ingress"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert nodes == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    submitter, operator = job["from"]
    assert operator == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}}}
    if "submitter" in pods(documents):
        assert (
            submitter["podSelector"]["matchLabels"].items()
            <= pods(documents)["submitter"]["metadata"]["labels"].items()
        )
    ports = {port["name"]: port["containerPort"] for port in container(pods(documents)["head"])["ports"]}
    assert [port["port"] for port in job["ports"]] == [ports["dashboard"]]
    scraped = [ports["metrics"], ports["as-metrics"], ports["dash-metrics"]]
    assert [port["port"] for port in metrics["ports"]] == scraped


def test_the_operator_waits_longer_for_a_lost_head_than_a_machine_takes_to_start() -> None:
    """KubeRay's default is 300 s, after which a RayJob fails without a retry."""
    (setting,) = yaml.safe_load((KUBERAY / "operator-values.yaml").read_text())["env"]
    assert setting["name"] == "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"
    assert int(setting["value"]) >= 1200
    for page in ("cluster.md", "shared-cluster.md"):
        text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
        (line,) = re.findall(r"helm install kuberay-operator .*", text)
        assert "--values infra/kuberay/operator-values.yaml" in line


def test_each_pod_states_who_pays_for_it(documents: list[Document]) -> None:
    assert {template["metadata"]["labels"]["team"] for template in pods(documents).values()} == {"example-team"}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_starts_the_cluster_of_its_overlay_and_requests_as_many_workers_as_fit(name: str) -> None:
    documents = overlay(name)
    assert not of_kind(documents, "RayCluster")
    (job,) = of_kind(documents, "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster(overlay(name.removesuffix("-job")))
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["submitterConfig"]["backoffLimit"] >= 10
    workers = re.search(r"--workers 1:(\d+)", job["spec"]["entrypoint"])
    preferred = next(iter(worker_groups(documents).values()))
    limits = container(preferred["template"])["resources"]["limits"]
    workers_per_pod = limits["nvidia.com/gpu"] if "--device cuda" in job["spec"]["entrypoint"] else limits["cpu"]
    assert workers
    assert int(workers[1]) == int(workers_per_pod) * preferred["maxReplicas"]


def test_weights_from_an_image_are_mounted_in_all_workers_of_a_job(tmp_path: Path) -> None:
    """The paths are relative to the folder of the test, because Kustomize accepts no absolute ones."""
    folder = tmp_path.resolve()
    base, weights, job = (os.path.relpath(KUBERAY / name, folder) for name in ("overlays/aws", "weights-image", "job"))
    (folder / "kustomization.yaml").write_text(f"resources: [{base}]\ncomponents: [{weights}, {job}]\n")
    documents = kustomize(folder)
    assert of_kind(documents, "RayJob")
    for group in worker_groups(documents).values():
        mount = {"name": "weights", "mountPath": "/weights", "readOnly": True}
        assert container(group["template"])["volumeMounts"][-1] == mount
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        assert pod["spec"]["volumes"][-1]["image"]["reference"].startswith("registry.example.com/")
        assert schemas.problems(pod) == []
