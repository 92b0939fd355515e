from __future__ import annotations

from pipeline.wording import counted


def test_one_thing_is_not_plural() -> None:
    assert [counted(number, "shard") for number in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
