"""Parsing --workers."""

from __future__ import annotations

import pytest

from pipeline.settings import RunSettings
from pipeline.worker_pools import WorkerSpec, parse_worker_specs

DEFAULT = WorkerSpec(cpus=2.0, gpus=1.0)


def test_a_number_a_range_and_nothing() -> None:
    assert parse_worker_specs(None, DEFAULT) == (DEFAULT,)
    (number,) = parse_worker_specs(8, DEFAULT)
    assert (number.min_workers, number.max_workers, number.exact, number.cpus, number.gpus) == (1, 8, True, 2.0, 1.0)
    assert parse_worker_specs("8", DEFAULT) == (number,)
    (range_,) = parse_worker_specs("0:64", DEFAULT)
    assert (range_.min_workers, range_.max_workers, range_.exact) == (0, 64, False)


def test_pools_of_several_kinds() -> None:
    large, small = parse_worker_specs(
        "1:8 ray.io/accelerator-type=A100 batch=16; 0:32 gpus=0.5 cpus=1 spot=0.01", DEFAULT
    )
    assert large == WorkerSpec(
        min_workers=1, max_workers=8, cpus=2.0, gpus=1.0, batch_size=16, labels={"ray.io/accelerator-type": "A100"}
    )
    assert small == WorkerSpec(min_workers=0, max_workers=32, cpus=1.0, gpus=0.5, resources={"spot": 0.01})
    assert str(large) == "2 CPU, 1 GPU, a node with ray.io/accelerator-type=A100"


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ("", "expected a number, or MIN:MAX"),
        ("many", "expected a number, or MIN:MAX"),
        ("1:", "expected a number, or MIN:MAX"),
        ("8:4", "a MAX of at least MIN"),
        ("0", "at least 1"),
        ("-1:4", "a MAX of at least MIN"),
        ("4;", "expected a number, or MIN:MAX"),
        ("4 gpus", "expected KEY=VALUE, such as gpus=0.5, and found 'gpus'"),
        ("4 gpus=half", "gpus is 'half'; expected a number"),
        ("4 gpus=-1", "gpus is -1; expected 0 or more"),
        ("4 gpus=inf", "gpus is inf"),
        ("4 batch=1.5", "batch is 1.5; expected a whole number"),
    ],
)
def test_settings_with_invalid_workers_are_refused(workers: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSettings(workers=workers)


@pytest.mark.parametrize(
    ("spec", "cluster", "capacity"),
    [
        (WorkerSpec(cpus=2), {"CPU": 9.0}, 4),
        (WorkerSpec(gpus=0.25), {"CPU": 100.0, "GPU": 3.0}, 12),
        (WorkerSpec(gpus=1), {"CPU": 2.0, "GPU": 8.0}, 2),
        (WorkerSpec(resources={"spot": 0.5}), {"CPU": 10.0, "spot": 1.0}, 2),
        (WorkerSpec(gpus=1), {"CPU": 4.0}, 1),
    ],
)
def test_capacity_is_limited_by_the_scarcest_resource(
    spec: WorkerSpec, cluster: dict[str, float], capacity: int
) -> None:
    assert spec.capacity(cluster) == capacity


def test_a_local_ray_has_cpus_for_all_workers_of_a_number_and_for_the_fewest_of_a_range() -> None:
    assert [spec.local_cpus for spec in parse_worker_specs("3; 1:64; 0:8", DEFAULT)] == [6.0, 2.0, 0.0]


def test_only_what_a_spec_sets_is_requested_from_ray() -> None:
    assert WorkerSpec().ray_options() == {"num_cpus": 1.0, "num_gpus": 0.0, "resources": None}
    spec = WorkerSpec(gpus=0.5, resources={"spot": 0.01}, labels={"region": "a"})
    assert spec.ray_options() == {
        "num_cpus": 1.0,
        "num_gpus": 0.5,
        "resources": {"spot": 0.01},
        "label_selector": {"region": "a"},
    }
