"""How many workers of which kind: the word behind --workers, and what each worker asks Ray for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

OPTIONS = ("cpus", "gpus", "batch")


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """Workers of one kind.

    least: with fewer for `start_timeout` seconds the run fails. most: as many are asked for as long as shards wait;
    None: as many as the cluster has room for at that moment. exact: a number was given, not a range. cpus, gpus: of
    Ray's resources for each; gpus may be a fraction. batch_size: images in one pass; None: as the settings say.
    resources: further ones of Ray's. labels: of the nodes that fit, by Ray's selectors.
    """

    least: int = 1
    most: int | None = None
    exact: bool = False
    cpus: float = 1.0
    gpus: float = 0.0
    batch_size: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_one_machine(self) -> float:
        """CPUs that a Ray started for this run needs: for all workers of a number, for the fewest of a range."""
        return self.cpus * (self.most or 0 if self.exact else self.least)

    def room(self, cluster: Mapping[str, float]) -> int:
        """How many workers fit into a cluster of these resources, but 1 at least."""
        wants = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return max(1, min(int(cluster.get(name, 0) / amount) for name, amount in wants.items() if amount))

    def __str__(self) -> str:
        wants = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        words = [f"{amount:g} {name}" for name, amount in wants.items()]
        return ", ".join(words + [f"a node with {name}={value}" for name, value in self.labels.items()])


def parse_pools(workers: int | str | None, plain: WorkerPool) -> tuple[WorkerPool, ...]:
    """The pools of ``N``, ``MIN:MAX`` or ``MIN:MAX KEY=VALUE …; …``; None is one of as many as there is room for.

    KEY: cpus, gpus or batch, else a resource of Ray's where VALUE is a number, else a label of Ray's nodes. plain: what
    holds where nothing else is said. Raises ValueError.
    """
    if workers is None:
        return (plain,)
    return tuple(_parse_pool(text, plain) for text in str(workers).split(";"))


def _parse_pool(text: str, plain: WorkerPool) -> WorkerPool:
    number, *options = text.split() or [""]
    first, colon, second = number.partition(":")
    try:
        least, most = int(first) if colon else 1, int(second if colon else first)
    except ValueError:
        raise ValueError(f"workers {text.strip()!r}: expected a number, or MIN:MAX, before any KEY=VALUE") from None
    if most < 1 or not 0 <= least <= most:
        raise ValueError(f"workers {number}: expected at least 1, and in MIN:MAX no less than MIN")
    pool = dataclasses.replace(plain, least=least, most=most, exact=not colon)
    for option in options:
        pool = _with_option(pool, option)
    return pool


def _with_option(pool: WorkerPool, option: str) -> WorkerPool:
    key, equals, value = option.partition("=")
    if not (key and equals and value):
        raise ValueError(f"workers: {option!r} is no option; expected KEY=VALUE, such as gpus=0.5")
    try:
        amount = float(value)
    except ValueError:
        if key in OPTIONS:
            raise ValueError(f"workers: {key} is {value!r}; expected a number") from None
        return dataclasses.replace(pool, labels={**pool.labels, key: value})
    if not 0 <= amount < float("inf"):
        raise ValueError(f"workers: {key} is {value}; expected 0 or more")
    if key == "batch":
        if amount < 1 or amount != int(amount):
            raise ValueError(f"workers: batch is {value}; expected 1 or more images")
        return dataclasses.replace(pool, batch_size=int(amount))
    if key == "cpus":
        return dataclasses.replace(pool, cpus=amount)
    if key == "gpus":
        return dataclasses.replace(pool, gpus=amount)
    return dataclasses.replace(pool, resources={**pool.resources, key: amount})
