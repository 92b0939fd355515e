"""Two rounds of chaos with every kind of blow; `make chaos` plays more of them, as other seeds draw them."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import SAMPLES, good, play_rounds, table
from strikes import KINDS, SHARDS

SEED = 4767
"""Its first two rounds strike in every way, and kill the driver with its cluster, which else takes a minute to end."""


def test_whatever_is_killed_nothing_is_lost_or_doubled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = play_rounds(tmp_path, rounds=2, seed=SEED)
    assert all(map(good, rounds)), capsys.readouterr().out
    assert {kind for played in rounds for kind in played.strikes} == set(KINDS)
    assert [played.rows for played in rounds] == [SHARDS * SAMPLES] * 2
    assert table(rounds).count("| good |") == 2
    # What is in the folder is not played again.
    assert play_rounds(tmp_path, rounds=2, seed=SEED) == rounds
