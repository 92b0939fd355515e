"""Ray's own autoscaler reads the groups of the RayCluster, and chooses between spot and on-demand machines."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Mapping

import pytest
from manifests import cluster, overlay, worker_groups


def launched(workers: int, availability: Mapping[str, float]) -> dict[str, int]:
    """Return how many pods of each group the autoscaler requests for a number of actors with one GPU each.

    Args:
        workers: Pending actors of one CPU and one GPU.
        availability: Score of the groups whose pods were given up lately, 0 (just now) to 1 (ten minutes ago).
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    documents = overlay("aws")
    resource = {"metadata": {"name": "diffseg", "namespace": "diffseg"}, "spec": copy.deepcopy(cluster(documents))}
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)
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
