from __future__ import annotations

import pytest

from pipeline.output import work
from pipeline.output.commit import Commit
from pipeline.output.work import SlowShard, WorkStatistics


def commit(shard: str, rows: int, seconds: float, host: str) -> Commit:
    values = {"fingerprint": "f", "attempt": 1, "rows": rows, "started": 100.0, "finished": 100.0 + seconds}
    return Commit(shard=shard, state="done", worker=host, **values)  # type: ignore[arg-type]


def test_rates_are_those_of_one_worker_and_the_slowest_shards_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SLOWEST", 2)
    records = [
        commit("s0", 10, 5.0, "a"),
        commit("s1", 30, 15.0, "a"),
        commit("s2", 10, 20.0, "b"),
        commit("empty", 0, 90.0, "b"),
        commit("without-times", 10, 0.0, "c"),
    ]
    statistics = WorkStatistics.of(records)
    assert statistics.rates() == {"a": 2.0, "b": 0.5}
    assert statistics.slowest == [SlowShard(20.0, "s2", 10, "b"), SlowShard(15.0, "s1", 30, "a")]
    assert statistics.plain()["slowest"][0] == {"seconds": 20.0, "shard": "s2", "images": 10, "host": "b"}
