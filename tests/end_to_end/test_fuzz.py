"""A short run of the fuzzer. `make fuzz` is a long one."""

from __future__ import annotations

from fuzz import fuzz


def test_hostile_shards_affect_only_their_own_rows() -> None:
    assert fuzz(cases=60, seed=1, heavy=False) == 0
