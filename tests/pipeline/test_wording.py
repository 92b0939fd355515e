from __future__ import annotations

from pipeline.wording import counted, duration


def test_one_thing_is_not_plural() -> None:
    assert [counted(number, "shard") for number in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]


def test_the_unit_of_a_duration_suits_its_length() -> None:
    assert [duration(seconds) for seconds in (8.4, 99, 840, 11520)] == ["8 s", "99 s", "14 min", "3.2 h"]
