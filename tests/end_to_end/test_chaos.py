"""One round of chaos with four kinds of process faults and a source that grows. `make proof NAME=chaos` plays 25."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import GROWTH, SAMPLES, play_rounds
from chaos_round import table
from process_faults import KINDS, SHARDS

SEED = 7156
"""Its first round kills a node, an actor, a driver, and a cluster with its driver, whose death takes a minute alone.

Meanwhile a second run, which listed the source before it grew, is paused while it writes a shard.
"""


def test_no_row_is_lost_or_duplicated_whatever_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = play_rounds(tmp_path, rounds=1, seed=SEED)
    assert all(result.is_good for result in rounds), capsys.readouterr().out
    assert {kind for result in rounds for kind in result.faults} == {*KINDS, "older run"} - {"loading"}
    assert [result.rows for result in rounds] == [SHARDS * SAMPLES + GROWTH]
    assert table(rounds).count("| good |") == 1
    # A finished round is not played again.
    assert play_rounds(tmp_path, rounds=1, seed=SEED) == rounds
