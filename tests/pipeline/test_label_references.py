"""The stage references in runs of the embedded model at 64 px: the names that `diffseg name` gives, and class maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from diffseg.method.reference_names import reference_maps
from diffseg.reference_state import BACKGROUND_OWNER, FILE_NAME, References
from diffseg.settings import settings_of
from jobs.label import main as label
from jobs.name import main as name
from pipeline.output.manifest import require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import schema_of
from pipeline.references.state import binding
from pipeline.references.worker import stored_features
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

NAMES = ("one", "two", "three")
SMALL = ("--no-ray", "--resolution", "64")


def rows_of(out: Path, *, features: bool = True) -> dict[str, dict[str, Any]]:
    storage, columns = Storage(url=str(out)), schema_of(features=features).names
    shards = sorted(read_run_commits(storage, require_manifest(storage)).done)
    return {row["key"]: row for shard in shards for row in label_rows(storage, shard, columns)}


@pytest.fixture(scope="module")
def photographs(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for path in sorted(scene_folder.rglob("*.*"))[:3]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with OUT of a run with features, and STATE with references of some of its segments."""
    folder = tmp_path_factory.mktemp("run")
    assert label([str(photographs), str(folder / "out"), "--features", *SMALL]) == 0
    write_state(folder / "state", folder / "out")
    return folder


def write_state(state: Path, out: Path, **bound: Any) -> None:
    """Write references: segments of the run, two of them for the first name and one for the background."""
    features = np.concatenate([stored_features(row) for row in rows_of(out).values()]).astype(np.float32)
    assert len(features) >= 5
    mean = features.mean(axis=0)
    references = References(
        names=NAMES,
        vectors=features[[0, 1, 2, 3, 4]] - mean,
        owners=np.array([0, 0, 1, 2, BACKGROUND_OWNER]),
        mean=mean,
        bound=binding(require_manifest(Storage(url=str(out)))) | bound,
        settings={"naming": {"names": list(NAMES)}},
    )
    Storage(url=str(state)).write_bytes(FILE_NAME, references.to_bytes())


def test_names_equal_those_of_the_command_name_on_the_features_of_the_same_run(
    run: Path, photographs: Path, tmp_path: Path
) -> None:
    state, inside, after = str(run / "state"), tmp_path / "inside", tmp_path / "after"
    flags = ["--references", state, "--background-below", "0.1"]
    assert label([str(photographs), str(inside), "--features", *flags, *SMALL]) == 0
    assert name([str(run / "out"), str(after), *flags, "--no-ray"]) == 0
    assert rows_of(inside) == rows_of(after), "masks, features, names, scores and class ids"
    given = {segment["name"] for row in rows_of(inside).values() for segment in row["segments"]}
    assert given == {*NAMES, "background"}
    manifest = json.loads((inside / "run.json").read_text())
    assert manifest["resolved"]["method"][-1] == "references"
    assert manifest["settings"]["naming"]["names"] == list(NAMES)
    moved = tmp_path / "moved"
    shutil.copytree(run / "state", moved)
    again = [str(photographs), str(inside), "--features", "--references", str(moved), "--background-below", "0.1"]
    assert label([*again, *SMALL]) == 0, "the same references elsewhere are the same run"


def test_the_first_stage_makes_class_maps_of_the_nearest_names(run: Path, photographs: Path, tmp_path: Path) -> None:
    flags = ["--method", "references", "--references", str(run / "state"), "--names", "one,three", *SMALL]
    assert label([str(photographs), str(tmp_path / "out"), *flags]) == 0
    for row in rows_of(tmp_path / "out", features=False).values():
        assert {segment["name"] for segment in row["segments"]} <= {"one", "three", "background"}
    (path,) = (tmp_path / "out" / "labels").iterdir()
    assert "segment_features" not in pq.read_schema(path).names, "features are stored only on request"


def test_maps_are_the_cosines_with_the_nearest_vector_of_a_name() -> None:
    generator = np.random.default_rng(0)
    vectors, mean = generator.standard_normal((5, 8)), generator.standard_normal(8)
    owners = np.array([0, 0, 1, 2, BACKGROUND_OWNER])
    references = References(names=NAMES, vectors=vectors, owners=owners, mean=mean, bound={}, settings={})
    features = torch.from_numpy(generator.standard_normal((2, 8, 3, 4))).half()
    maps = reference_maps(features, references, [("three", "one"), ("unknown",)])
    assert maps.shape == (2, 3, 3, 4)
    for y, x in np.ndindex(3, 4):
        position = features[0, :, y, x].double().numpy() - mean

        def cosine(numbers: Sequence[int], position: np.ndarray = position) -> float:
            lengths = np.sqrt((position**2).sum() * (vectors[numbers] ** 2).sum(axis=1))
            return max(0.0, (vectors[numbers] @ position / lengths).max())

        expected = [cosine([3]), cosine([0, 1]), cosine([4])]
        np.testing.assert_allclose(maps[0, :, y, x], expected, atol=1e-6)
    assert not maps[1, :2].any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--references", "state", "--timestep", "200"], "timestep: 300 in the references, 200 in this run"),
        (["--references", "state", "--resolution", "128"], "resolution: 64 in the references, 128 in this run"),
        (["--references", "other layers"], "layers: ['another'] in the references"),
        (["--references", "other model"], "model_sha256: 'x' in the references"),
        (["--references", "state", "--names", "one,four"], "'four': has no reference"),
        (["--references", "state", "--merge-names"], "merge_names and references exclude each other"),
        (["--references", "missing"], "expected the STATE of `diffseg fit references`"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[2:],
)
def test_references_that_do_not_fit_are_refused_before_anything_is_written(
    flags: list[str], message: str, run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_state(run / "other layers", run / "out", layers=["another"])
    write_state(run / "other model", run / "out", model_sha256="x")
    words = [str(run / word) if word in ("state", "missing", "other layers", "other model") else word for word in flags]
    assert label([str(photographs), str(tmp_path / "out"), *SMALL, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"references": "s", "method": settings_of(method="diffseg")}, "give both or neither"),
        ({"method": settings_of(method="diffseg,references")}, "give both or neither"),
        ({"references": "s", "clip": "c"}, "clip and references both name segments"),
        (
            {"references": "s", "method": settings_of(background_words=("sky",))},
            "background words have no effect beside references",
        ),
        ({"references": "s", "network": "n"}, "references would have no effect"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_go_with_references_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSettings(**settings)
    with pytest.raises(ValueError, match="only one stage can name segments, cross, clip or references"):
        settings_of(method="diffseg,cross,references")
