"""A run with a page for the tests of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import HOSTILE, STRIPES, report
from report_runs import failed, labelled, write_rows

from diffseg import IGNORE


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of 60 rows, of which two failed and some have named segments; its page is written."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "in").mkdir()
    rows = []
    for number in range(58):
        key = f"{number:03d}.png"
        Image.fromarray(np.full((40, 60, 3), 4 * number, np.uint8)).save(folder / "in" / key)
        labels = STRIPES.copy()
        labels[:5] = IGNORE if number == 0 else labels[:5]
        rows.append(labelled(key, labels, {0: "sky", 2: HOSTILE} if number < 10 else None, number / 58))
    rows += [failed(HOSTILE, "undecodable", HOSTILE), failed("b.png", "too_large", "has 2³² pixels")]
    write_rows(str(folder / "out"), rows, per_shard=10**9, source=str(folder / "in"), failures=[HOSTILE])
    assert report(folder / "out") == 0
    return folder / "out"
