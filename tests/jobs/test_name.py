"""`diffseg fit references` and `diffseg name` on a planted run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reference_runs import SIZE, PlantedImage, write_feature_run

from jobs.fit import main as fit
from jobs.name import main as name
from pipeline.output.manifest import require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.readers.names import NameSettings
from pipeline.storage import Storage

CAT, DOG = np.eye(SIZE)[:2] / 2
IMAGES = {
    "a.png": PlantedImage(features=np.stack([CAT, CAT + DOG / 8]), fields={"has": "cat"}),
    "b.png": PlantedImage(features=np.stack([CAT + DOG / 4]), fields={"has": "cat"}),
    "c.png": PlantedImage(features=np.stack([DOG, DOG + CAT / 8]), fields={"has": "dog"}),
    "d.png": PlantedImage(features=np.stack([DOG + CAT / 4]), fields={"has": "dog"}),
}


def test_segments_are_named_by_references_of_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, state, new = (str(tmp_path / folder) for folder in ("out", "state", "new"))
    write_feature_run(tmp_path / "out", IMAGES)
    assert (
        fit(["references", out, state, "--names", "cat,dog", "--labels-field", "has", "--contexts", "0", "--no-ray"])
        == 0
    )
    assert "references of 2 names, from 4 images (0 left out)" in capsys.readouterr().out
    assert name([out, new, "--references", state, "--no-ray", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"ok": 4}
    storage = Storage(url=new)
    (shard,) = read_run_commits(storage, require_manifest(storage)).done
    given = {
        row["key"]: [segment["name"] for segment in row["segments"]]
        for row in label_rows(storage, shard, ["key", "segments"])
    }
    assert given == {"a.png": ["cat"] * 2, "b.png": ["cat"], "c.png": ["dog"] * 2, "d.png": ["dog"]}


def test_a_run_without_a_field_of_names_is_told_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_feature_run(tmp_path / "out", IMAGES, naming=NameSettings(names=("cat", "dog")))
    assert fit(["references", str(tmp_path / "out"), str(tmp_path / "state"), "--no-ray"]) == 2
    assert "--labels-field" in capsys.readouterr().err
