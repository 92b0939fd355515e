"""Ray's own autoscaler reads the groups of the RayCluster, and chooses between spot and on-demand machines."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Mapping

import pytest
from manifests import Document, cluster, container, overlay, worker_groups


def read_by_ray(spec: Document) -> Document:
    """Return what Ray's autoscaler makes of the spec of a RayCluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})


def launched(workers: int, availability: Mapping[str, float]) -> dict[str, int]:
    """Return how many pods of each group the autoscaler requests for a number of actors with one GPU each.

    Args:
        workers: Pending actors of one CPU and one GPU.
        availability: Score of the groups whose pods were given up lately, 0 (just now) to 1 (ten minutes ago).
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = AutoscalingConfig(read_by_ray(copy.deepcopy(cluster(overlay("aws")))), skip_content_hash=True)
    demand = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1}) for _ in range(workers)]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(demand),
        recoverable_resource_availabilities=dict(availability),
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "headgroup"}


def test_spot_machines_are_requested_first_and_on_demand_machines_when_they_are_used_up() -> None:
    spot = worker_groups(overlay("aws"))["gpu"]["maxReplicas"]
    assert launched(3, {}) == {"gpu": 3}
    assert launched(spot + 2, {}) == {"gpu": spot, "gpu-on-demand": 2}


def test_without_spot_capacity_the_demand_goes_to_on_demand_machines() -> None:
    fallback = worker_groups(overlay("aws"))["gpu-on-demand"]["maxReplicas"]
    assert launched(3, {"gpu": 0.0}) == {"gpu-on-demand": 3}
    assert launched(fallback + 5, {"gpu": 0.5}) == {"gpu-on-demand": fallback, "gpu": 5}


def test_ten_minutes_later_spot_machines_are_tried_again() -> None:
    assert launched(3, {"gpu": 1.0}) == {"gpu": 3}


def test_a_pod_without_a_machine_is_given_up_after_the_time_of_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler.v2.instance_manager import config

    (setting,) = cluster(overlay("aws"))["autoscalerOptions"]["env"]
    monkeypatch.setenv(setting["name"], setting["value"])
    read_again = runpy.run_path(config.__file__)["InstanceReconcileConfig"]()
    default = config.InstanceReconcileConfig()
    assert (default.allocate_status_timeout_s, read_again.allocate_status_timeout_s) == (3600, 900)


def test_a_slice_of_a_gpu_counts_as_one_if_the_group_says_so() -> None:
    """The guide on MIG says this: Ray sees no GPU in the name of a slice."""
    spec = copy.deepcopy(cluster(overlay("aws")))
    group = spec["workerGroupSpecs"][0]
    for resources in container(group["template"])["resources"].values():
        resources.pop("nvidia.com/gpu")
        resources["nvidia.com/mig-1g.10gb"] = "1"
    assert "GPU" not in read_by_ray(spec)["available_node_types"]["gpu"]["resources"]
    group["rayStartParams"]["num-gpus"] = "1"
    assert read_by_ray(spec)["available_node_types"]["gpu"]["resources"]["GPU"] == 1
