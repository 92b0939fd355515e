"""Who is to blame for shards that fail: the shards, a worker or its node."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pipeline.executor import health
from pipeline.executor.health import BLAMED_WORKERS, STUCK_SHARDS, Health
from pipeline.executor.shard_queue import Place

SICK, GOOD = Place(node="a", worker="1"), Place(node="b", worker="2")


def fail(judge: Health, place: Place, shards: Iterable[str], *, environmental: bool = True) -> None:
    for shard in shards:
        judge.failed(place, shard, "OSError: No space left on device", is_environmental=environmental)


def test_a_worker_whose_shards_succeed_elsewhere_is_to_blame_and_the_second_time_its_node() -> None:
    judge = Health()
    for number in range(BLAMED_WORKERS):
        worker = Place(node="a", worker=f"sick-{number}")
        judge.joined(worker)
        fail(judge, worker, "xyz")
        assert judge.is_stuck(worker)
        assert not judge.may_work(worker)
        judge.succeeded(GOOD, "x")
        assert judge.blame() == [], "one success may be a coincidence"
        judge.succeeded(GOOD, "y")
        ((place, reason),) = judge.blame()
        assert (place, "3 shards in a row failed there, and 2 of them succeeded elsewhere" in reason) == (worker, True)
        assert bool(judge.set_aside) == (number == BLAMED_WORKERS - 1)
    assert "No space left on device" in judge.set_aside["a"]


def test_a_success_ends_a_streak() -> None:
    judge = Health()
    fail(judge, SICK, "xy")
    judge.succeeded(SICK, "z")
    fail(judge, SICK, "vw")
    assert judge.may_work(SICK)


def test_shards_that_fail_everywhere_are_to_blame_themselves() -> None:
    judge = Health()
    fail(judge, SICK, "xyz", environmental=False)
    assert judge.is_stuck(SICK)
    fail(judge, GOOD, "x", environmental=False)
    assert not judge.is_stuck(SICK)
    judge.succeeded(GOOD, "y")
    assert judge.blame() == []
    assert not judge.set_aside


def test_a_stuck_worker_whose_errors_may_be_those_of_the_shards_goes_on_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, now = Health(), 100.0
    monkeypatch.setattr(health.time, "monotonic", lambda: now)
    fail(judge, SICK, "xyz", environmental=False)
    assert not judge.may_work(SICK)
    now += 1.0
    assert judge.may_work(SICK)


def test_the_successor_of_a_worker_that_died_continues_its_streak() -> None:
    judge = Health()
    fail(judge, SICK, "xy")
    judge.keep([])
    successor = Place(node="a", worker="3")
    judge.joined(successor)
    fail(judge, successor, "z")
    assert judge.is_stuck(successor)


def test_a_node_on_which_no_worker_can_start_is_set_aside_unless_shards_succeed_there() -> None:
    judge = Health()
    judge.start_failed("a", "e")
    judge.succeeded(SICK, "x")
    assert [judge.start_failed("a", "OSError: disk") for _ in range(4)] == [False, False, True, False]
    assert "OSError: disk" in judge.set_aside["a"]


def test_a_cause_that_strikes_all_workers_replaces_them_once_and_then_ends_the_run() -> None:
    judge = Health()
    fail(judge, SICK, "xyz")
    fail(judge, GOOD, "uvw")
    assert judge.resolve([SICK, GOOD]) == ([SICK, GOOD], "")
    again = [Place(node="a", worker="3"), Place(node="b", worker="4")]
    for place in again:
        fail(judge, place, "xyz")
    replaced, error = judge.resolve(again)
    assert (replaced, error) == (again, "OSError: No space left on device")


def test_a_success_in_between_gives_all_workers_another_chance() -> None:
    judge = Health()
    fail(judge, SICK, "xyz")
    judge.resolve([SICK])
    judge.succeeded(GOOD, "u")
    fail(judge, SICK, "xyz")
    assert judge.resolve([SICK]) == ([SICK], "")


def test_workers_with_errors_of_shards_go_on_however_often_all_are_stuck() -> None:
    judge = Health()
    for _ in range(3):
        fail(judge, SICK, [str(number) for number in range(STUCK_SHARDS)], environmental=False)
        assert judge.resolve([SICK]) == ([], "")
        assert judge.may_work(SICK)
