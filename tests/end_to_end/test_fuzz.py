"""A short run of the fuzzer; `make fuzz` is the long one."""

from __future__ import annotations

from fuzz import fuzz


def test_hostile_shards_cost_their_own_rows_and_nothing_else() -> None:
    assert fuzz(cases=60, seed=1, heavy=False) == 0
