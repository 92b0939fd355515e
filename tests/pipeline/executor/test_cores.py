"""The cores that a worker uses for its threads."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from pipeline.executor.cores import cores_of_actor, own_cores

NODES = [
    {"NodeID": "a", "Resources": {"CPU": 16.0, "GPU": 2.0}},
    {"NodeID": "b", "Resources": {"CPU": 64.0}},
]


@pytest.mark.parametrize(
    ("assigned", "node", "cores"),
    [
        ({"CPU": 1.0}, "b", 1),
        ({"CPU": 4.0}, "b", 4),
        ({"CPU": 0.5}, "b", 1),
        ({"CPU": 1.0, "GPU": 1.0}, "a", 8),
        ({"CPU": 1.0, "GPU": 0.5}, "a", 4),
        ({"CPU": 12.0, "GPU": 1.0}, "a", 12),
        ({"CPU": 1.0, "GPU": 1.0}, "a node that has just joined", 1),
    ],
)
def test_an_actor_uses_its_cpus_and_its_share_of_those_beside_its_gpu(
    assigned: Mapping[str, float], node: str, cores: int
) -> None:
    assert cores_of_actor(assigned, NODES, node) == cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no processor affinity")
def test_without_ray_the_process_uses_the_cores_that_it_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert own_cores() == 3
