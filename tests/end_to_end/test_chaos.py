"""One round of chaos with four kinds of blow; `make chaos` plays more of them, as other seeds draw them."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import SAMPLES, good, play_rounds, table
from process_faults import KINDS, SHARDS

SEED = 7156
"""Its first round kills a node, the cluster with its driver (which else takes a minute to end), an actor, a driver."""


def test_whatever_is_killed_nothing_is_lost_or_doubled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = play_rounds(tmp_path, rounds=1, seed=SEED)
    assert all(map(good, rounds)), capsys.readouterr().out
    assert {kind for played in rounds for kind in played.strikes} == set(KINDS) - {"loading"}
    assert [played.rows for played in rounds] == [SHARDS * SAMPLES]
    assert table(rounds).count("| good |") == 1
    # What is in the folder is not played again.
    assert play_rounds(tmp_path, rounds=1, seed=SEED) == rounds
