"""Parses --workers: how many workers of each kind a run has, and what each of them requests from Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

OPTIONS = ("cpus", "gpus", "batch")
"""Keys of --workers that are not names of Ray resources or of node labels."""
NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives to each node."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """A pool of workers of one kind.

    Attributes:
        min_workers: The run fails if fewer workers are ready for too long (`pipeline.executor.readiness`).
        max_workers: Most workers that are requested while shards wait; None for as many as fit into the cluster.
        exact: True if a number was given, False for a range.
        cpus: Ray CPUs of each worker.
        gpus: Ray GPUs of each worker; may be a fraction.
        batch_size: Images in one pass of the model; None for that of `WorkerSettings`.
        resources: Other Ray resources of each worker.
        labels: Labels that a Ray node must have to run these workers.
    """

    min_workers: int = 1
    max_workers: int | None = None
    exact: bool = False
    cpus: float = 1.0
    gpus: float = 0.0
    batch_size: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def local_cpus(self) -> float:
        """CPUs that a Ray started for this run needs: for all workers of a number, for the fewest of a range."""
        return self.cpus * (self.max_workers or 0 if self.exact else self.min_workers)

    @property
    def requests(self) -> dict[str, float]:
        """Amount of each Ray resource that one worker requests."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.resources}

    def capacity(self, cluster: Mapping[str, float]) -> int:
        """Return how many workers fit into a cluster with these resources, and at least 1."""
        return max(1, min(int(cluster.get(name, 0) / amount) for name, amount in self.requests.items() if amount))

    def fits_into(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> int:
        """Return how many workers would fit into an empty node with these resources and labels."""
        plain = {name: value for name, value in self.labels.items() if not value.startswith(("!", "in("))}
        if any(labels.get(name) != value for name, value in plain.items()):
            return 0
        requests = {name: amount for name, amount in self.requests.items() if amount}
        return min((int(resources.get(name, 0) / amount) for name, amount in requests.items()), default=1)

    def ray_options(self, avoided: Collection[str] = ()) -> dict[str, Any]:
        """Return what one worker requests as the options of a Ray actor.

        Args:
            avoided: Ids of nodes that must not run the worker.
        """
        labels = dict(self.labels)
        if avoided:
            labels[NODE_LABEL] = f"!in({', '.join(sorted(avoided))})"
        selector = {"label_selector": labels} if labels else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.resources) or None, **selector}

    def __str__(self) -> str:
        words = [f"{amount:g} {name}" for name, amount in self.requests.items()]
        return ", ".join(words + [f"a node with {name}={value}" for name, value in self.labels.items()])


def parse_worker_specs(workers: int | str | None, default: WorkerSpec) -> tuple[WorkerSpec, ...]:
    """Parse the value of --workers.

    Args:
        workers: ``N``, ``MIN:MAX`` or ``MIN:MAX KEY=VALUE …; …``, or None for one pool of as many workers as fit into
            the cluster. A KEY is cpus, gpus or batch, else the name of a Ray resource if VALUE is a number, else the
            name of a label of Ray nodes.
        default: Holds the values that `workers` does not set.

    Raises:
        ValueError: `workers` has another form; the message says what is wrong.
    """
    if workers is None:
        return (default,)
    return tuple(_parse_spec(text, default) for text in str(workers).split(";"))


def _parse_spec(text: str, default: WorkerSpec) -> WorkerSpec:
    number, *options = text.split() or [""]
    first, colon, second = number.partition(":")
    try:
        min_workers, max_workers = int(first) if colon else 1, int(second if colon else first)
    except ValueError:
        raise ValueError(f"workers {text.strip()!r}: expected a number, or MIN:MAX, before any KEY=VALUE") from None
    if max_workers < 1 or not 0 <= min_workers <= max_workers:
        raise ValueError(f"workers {number}: expected at least 1, and in MIN:MAX a MAX of at least MIN")
    spec = dataclasses.replace(default, min_workers=min_workers, max_workers=max_workers, exact=not colon)
    for option in options:
        spec = _with_option(spec, option)
    return spec


def _with_option(spec: WorkerSpec, option: str) -> WorkerSpec:
    key, equals, value = option.partition("=")
    if not (key and equals and value):
        raise ValueError(f"workers: expected KEY=VALUE, such as gpus=0.5, and found {option!r}")
    try:
        amount = float(value)
    except ValueError:
        if key in OPTIONS:
            raise ValueError(f"workers: {key} is {value!r}; expected a number") from None
        return dataclasses.replace(spec, labels={**spec.labels, key: value})
    if not 0 <= amount < float("inf"):
        raise ValueError(f"workers: {key} is {value}; expected 0 or more")
    if key == "batch":
        if amount < 1 or amount != int(amount):
            raise ValueError(f"workers: batch is {value}; expected a whole number of images, at least 1")
        return dataclasses.replace(spec, batch_size=int(amount))
    if key == "cpus":
        return dataclasses.replace(spec, cpus=amount)
    if key == "gpus":
        return dataclasses.replace(spec, gpus=amount)
    return dataclasses.replace(spec, resources={**spec.resources, key: amount})
