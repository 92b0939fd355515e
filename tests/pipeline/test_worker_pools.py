"""The word behind --workers."""

from __future__ import annotations

import pytest

from pipeline.settings import RunSettings
from pipeline.worker_pools import WorkerPool, parse_pools

PLAIN = WorkerPool(cpus=2.0, gpus=1.0)


def test_a_number_a_range_and_nothing() -> None:
    assert parse_pools(None, PLAIN) == (PLAIN,)
    (number,) = parse_pools(8, PLAIN)
    assert (number.least, number.most, number.exact, number.cpus, number.gpus) == (1, 8, True, 2.0, 1.0)
    assert parse_pools("8", PLAIN) == (number,)
    (few,) = parse_pools("0:64", PLAIN)
    assert (few.least, few.most, few.exact) == (0, 64, False)


def test_pools_of_several_kinds() -> None:
    large, small = parse_pools("1:8 ray.io/accelerator-type=A100 batch=16; 0:32 gpus=0.5 cpus=1 spot=0.01", PLAIN)
    assert large == WorkerPool(
        least=1, most=8, cpus=2.0, gpus=1.0, batch_size=16, labels={"ray.io/accelerator-type": "A100"}
    )
    assert small == WorkerPool(least=0, most=32, cpus=1.0, gpus=0.5, resources={"spot": 0.01})
    assert str(large) == "2 CPU, 1 GPU, a node with ray.io/accelerator-type=A100"


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("", "expected a number, or MIN:MAX"),
        ("many", "expected a number, or MIN:MAX"),
        ("1:", "expected a number, or MIN:MAX"),
        ("8:4", "no less than MIN"),
        ("0", "at least 1"),
        ("-1:4", "no less than MIN"),
        ("4;", "expected a number, or MIN:MAX"),
        ("4 gpus", "'gpus' is no option"),
        ("4 gpus=half", "gpus is 'half'; expected a number"),
        ("4 gpus=-1", "gpus is -1; expected 0 or more"),
        ("4 gpus=inf", "gpus is inf"),
        ("4 batch=1.5", "batch is 1.5; expected 1 or more"),
    ],
)
def test_what_is_no_number_of_workers_is_refused_before_anything_begins(workers: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunSettings(workers=workers)


@pytest.mark.parametrize(
    ("pool", "cluster", "room"),
    [
        (WorkerPool(cpus=2), {"CPU": 9.0}, 4),
        (WorkerPool(gpus=0.25), {"CPU": 100.0, "GPU": 3.0}, 12),
        (WorkerPool(gpus=1), {"CPU": 2.0, "GPU": 8.0}, 2),
        (WorkerPool(resources={"spot": 0.5}), {"CPU": 10.0, "spot": 1.0}, 2),
        (WorkerPool(gpus=1), {"CPU": 4.0}, 1),
    ],
)
def test_there_is_room_for_as_many_as_the_scarcest_resource_allows(
    pool: WorkerPool, cluster: dict[str, float], room: int
) -> None:
    assert pool.room(cluster) == room


def test_a_ray_of_ones_own_has_room_for_a_number_but_not_for_the_most_of_a_range() -> None:
    assert [pool.on_one_machine for pool in parse_pools("3; 1:64; 0:8", PLAIN)] == [6.0, 2.0, 0.0]
