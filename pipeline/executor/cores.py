"""How many processor cores a worker may use for its threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


def own_cores() -> int:
    """Return the number of cores that this process may use: those of a worker, or of a run without Ray."""
    import ray

    context = ray.get_runtime_context() if ray.is_initialized() else None
    if context is None or context.get_actor_id() is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assigned = context.get_assigned_resources()
    return cores_of_actor(assigned, ray.nodes() if assigned.get("GPU") else (), context.get_node_id())


def cores_of_actor(assigned: Mapping[str, float], nodes: Sequence[Mapping[str, Any]], node_id: str) -> int:
    """Return the cores of an actor: its Ray CPUs, and with a GPU at least as many as its node has for each GPU.

    A worker requests one Ray CPU unless --workers says otherwise, so that it fits beside other work. But where a node
    has 16 CPUs for each GPU, nobody else uses them.

    Args:
        assigned: The Ray resources of the actor.
        nodes: The nodes as `ray.nodes` returns them.
        node_id: The actor's node.
    """
    cores = assigned.get("CPU", 0.0)
    for node in nodes:
        resources = node["Resources"]
        if node["NodeID"] == node_id and resources.get("GPU"):
            cores = max(cores, resources.get("CPU", 0.0) * assigned.get("GPU", 0.0) / resources["GPU"])
    return max(1, int(cores))
