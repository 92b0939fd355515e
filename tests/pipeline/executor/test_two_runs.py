"""Two runs in one OUT with different listings of SRC: no row is lost or doubled, however their steps interleave."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_runs import play_round


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_lost_or_doubled_in_any_order_of_steps(seed: int, tmp_path: Path) -> None:
    """`make proof NAME=source-changes` plays more rounds."""
    play_round(tmp_path, seed)
