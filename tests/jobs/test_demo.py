from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo import PHOTOGRAPHS, SCENES, main


@pytest.mark.usefixtures("local_ray")
def test_the_demo_labels_everything_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    folder = tmp_path / "demo"
    assert main([str(folder)]) == 0
    rows = [row for path in (folder / "out" / "labels").iterdir() for row in pq.read_table(path).to_pylist()]
    assert [row["status"] for row in rows] == ["ok"] * (len(PHOTOGRAPHS) + SCENES)
    text = "".join(capsys.readouterr().out.split())  # Rich breaks long paths at the width of the console
    assert f"{folder}/labels.png" in text
    with Image.open(folder / "labels.png") as picture:
        assert picture.height > 3 * 256
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    assert (folder / "scenes.png").stat().st_size < 200_000
