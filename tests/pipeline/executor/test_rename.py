"""`rename_run`: other names for the rows of a run, by references, with the driver of `recut_run`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_runs import SIZE, PlantedImage, write_feature_run

from diffseg.reference_state import References
from jobs.verify import main as verify
from pipeline.errors import RunRefused
from pipeline.executor.rename import rename_run
from pipeline.executor.summary import RunSummary
from pipeline.output.manifest import require_manifest, write_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import FEATURE_COLUMNS, schema_of
from pipeline.output.verify import verify_run
from pipeline.readers.names import NameSettings
from pipeline.references.state import REFERENCES, binding
from pipeline.settings import RunSettings
from pipeline.storage import SourceError, Storage

NAMES = ("cat", "dog")
CAT, DOG, OTHER = np.eye(SIZE)[:3] / 2
IMAGES: dict[str, PlantedImage | None] = {
    "a.png": PlantedImage(features=np.stack([DOG, CAT]), fields={"labels": ["cat"]}, names=["cat", "cat"]),
    "b.png": PlantedImage(features=np.stack([CAT + OTHER, OTHER]), fields={"labels": []}, names=["cat", "cat"]),
    "c.png": None,
    "d.png": PlantedImage(features=np.stack([DOG]), fields={"x": 1}, names=["cat"]),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    naming = NameSettings(names=("cat",), labels_field="labels")
    write_feature_run(tmp_path / "out", IMAGES, per_shard=2, naming=naming)
    write_state(tmp_path / "state", tmp_path / "out")
    return tmp_path / "out"


def write_state(state: Path, out: Path, **bound: Any) -> None:
    naming = dataclasses.asdict(NameSettings(names=NAMES, labels_field="labels"))
    references = References(
        names=NAMES,
        vectors=2 * np.stack([CAT, DOG]),
        mean=np.zeros(SIZE, np.float32),
        bound=binding(require_manifest(Storage(url=str(out)))) | bound,
        settings={"naming": naming},
    )
    Storage(url=str(state)).write_bytes(REFERENCES, references.to_bytes())


def rename(out: Path, new: Path, state: str = "state", **options: Any) -> RunSummary:
    return rename_run(str(out), str(new), str(out.parent / state), run=RunSettings(no_ray=True), **options)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    storage = Storage(url=str(folder))
    shards = sorted(read_run_commits(storage, require_manifest(storage)).done)
    rows = [row for shard in shards for row in label_rows(storage, shard, schema_of(features=True).names)]
    return {row["key"]: row for row in rows}


def names_in(folder: Path) -> dict[str, list[tuple[str | None, float, int]]]:
    return {
        key: [(segment["name"], round(segment["name_score"], 3), segment["class_id"]) for segment in row["segments"]]
        for key, row in rows_of(folder).items()
        if row["status"] == "ok"
    }


def test_segments_get_the_name_of_the_closest_reference_and_all_else_stays(out: Path, tmp_path: Path) -> None:
    summary = rename(out, tmp_path / "new")
    assert (summary.failed, summary.counts) == ({}, {"ok": 3, "undecodable": 1})
    assert names_in(tmp_path / "new") == {
        "a.png": [("dog", 1.0, 2), ("cat", 1.0, 1)],
        "b.png": [("cat", 0.707, 1), ("cat", 0.0, 1)],
        "d.png": [("dog", 1.0, 2)],
    }
    before, after = rows_of(out), rows_of(tmp_path / "new")
    for key, row in after.items():
        assert {**row, "segments": 0} == {**before[key], "segments": 0}
        assert key == "c.png" or row[FEATURE_COLUMNS[1]]
    new = Storage(url=str(tmp_path / "new"))
    manifest = require_manifest(new)
    assert manifest.settings["naming"]["names"] == ["cat", "dog"], "class ids refer to the names of the references"
    assert not any(verify_run(new, manifest).problems.values())


def test_a_new_run_has_the_same_bytes_each_time_and_can_be_named_again(out: Path, tmp_path: Path) -> None:
    rename(out, tmp_path / "new")
    rename(out, tmp_path / "again")
    rename(tmp_path / "new", tmp_path / "third", background_below=0.5)
    files = {name: sorted((tmp_path / name / "labels").iterdir()) for name in ("new", "again", "third")}
    assert [path.read_bytes() for path in files["new"]] == [path.read_bytes() for path in files["again"]]
    assert len(files["third"]) == 2
    assert rename(out, tmp_path / "new").done_before == 2


def test_a_new_run_is_not_compared_with_images_that_its_rows_were_not_made_from(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(url=str(out))
    (tmp_path / "images").mkdir()
    write_manifest(storage, dataclasses.replace(require_manifest(storage), source=str(tmp_path / "images")))
    rename(out, tmp_path / "new")
    assert verify([str(tmp_path / "new")]) == 0
    assert "not compared with this run: its rows come from those of another run" in capsys.readouterr().out


def test_segments_like_no_reference_are_background_on_request(out: Path, tmp_path: Path) -> None:
    rename(out, tmp_path / "new", background_below=0.5)
    assert names_in(tmp_path / "new")["b.png"] == [("cat", 0.707, 1), ("background", 0.0, 0)]


def test_own_names_are_those_that_the_sample_lists(out: Path, tmp_path: Path) -> None:
    rename(out, tmp_path / "new", own_names=True)
    assert names_in(tmp_path / "new") == {
        "a.png": [("cat", 0.0, 1), ("cat", 1.0, 1)],
        "b.png": [("background", 1.0, 0), ("background", 1.0, 0)],  # it lists no names
        "d.png": [(None, 0.0, -1)],  # it has no such field
    }


def test_references_of_other_features_and_another_change_are_refused(out: Path, tmp_path: Path) -> None:
    write_state(tmp_path / "other", out, timestep=300)
    with pytest.raises(RunRefused, match="timestep: 300 in the references, 1 in this run"):
        rename(out, tmp_path / "new", "other")
    rename(out, tmp_path / "new")
    with pytest.raises(RunRefused, match="named"):
        rename(out, tmp_path / "new", background_below=0.5)
    with pytest.raises(SourceError, match="NEW must be another folder"):
        rename(out, out)
