"""run.json, and the guard against mixing two runs in one OUT."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from diffseg.settings import settings_of
from pipeline.errors import RunRefused
from pipeline.output.manifest import (
    Manifest,
    check_same_run,
    fingerprint_of,
    is_run,
    read_manifest,
    require_manifest,
    versions,
    write_manifest,
)
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import SourceError, Storage

RESOLVED = {"tau": [0.3, 0.3, 0.3], "timestep": 300, "resolution": 256}


def manifest(settings: LabelSettings, **changes: object) -> Manifest:
    fields = {
        "source": "s3://in",
        "settings": settings.plain(),
        "model_sha256": "m",
        "resolved": RESOLVED,
        "environment": {"threads": 1},
        "fingerprint": fingerprint_of(settings, "m", RESOLVED),
        "shards": 3,
    }
    return Manifest(**(fields | changes))  # type: ignore[arg-type]


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    assert read_manifest(out) is None
    written = manifest(LabelSettings(method=settings_of(tau=(0.5,))))
    write_manifest(out, written)
    read = read_manifest(out)
    assert read is not None
    assert check_same_run(read, written, out) == []
    assert read.fingerprint == written.fingerprint


def test_a_foreign_run_json_is_refused(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    out.write_bytes("run.json", b'{"something": "else"}')
    with pytest.raises(RunRefused, match="not a run record"):
        read_manifest(out)


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    assert not is_run(out)
    with pytest.raises(SourceError, match=r"no run\.json here; expected the OUT of `diffseg label`"):
        require_manifest(out)
    write_manifest(out, manifest(LabelSettings()))
    assert is_run(out)
    assert require_manifest(out).fingerprint == manifest(LabelSettings()).fingerprint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (LabelSettings(method=settings_of(kmeans=True)), r"kmeans: False in OUT, True now"),
        (LabelSettings(method=settings_of(tau=(0.5, 0.5))), r"tau: None in OUT, \[0.5, 0.5\] now"),
        (LabelSettings(format="parquet,webdataset"), r"format: 'parquet' in OUT, 'parquet,webdataset' now"),
        (LabelSettings(dtype="bfloat16"), r"dtype: 'float32' in OUT, 'bfloat16' now"),
    ],
)
def test_other_settings_are_refused_with_both_values(changed: LabelSettings, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunRefused, match=message):
        check_same_run(manifest(LabelSettings()), manifest(changed), Storage(url=str(tmp_path)))


def test_another_source_and_another_model_are_refused(tmp_path: Path) -> None:
    out, settings = Storage(url=str(tmp_path)), LabelSettings()
    with pytest.raises(RunRefused, match=re.escape("source: 's3://in' in OUT, 's3://other' now")):
        check_same_run(manifest(settings), manifest(settings, source="s3://other"), out)
    other = manifest(settings, model_sha256="n", fingerprint=fingerprint_of(settings, "n", RESOLVED))
    with pytest.raises(RunRefused, match="model_sha256: 'm' in OUT, 'n' now"):
        check_same_run(manifest(settings), other, out)


def test_the_same_model_at_another_location_is_the_same_run(tmp_path: Path) -> None:
    old, new = LabelSettings(model="a"), LabelSettings(model="b", revision="main")
    assert check_same_run(manifest(old), manifest(new), Storage(url=str(tmp_path))) == []


def test_another_environment_is_reported_and_not_refused(tmp_path: Path) -> None:
    settings = LabelSettings()
    differences = check_same_run(
        manifest(settings), manifest(settings, environment={"threads": 2}), Storage(url=str(tmp_path))
    )
    assert differences == ["threads: 1 before, 2 now"]


def test_each_library_of_another_version_is_reported_by_itself(tmp_path: Path) -> None:
    before, now = ({"threads": 1, "versions": {"torch": torch, "numpy": "2.0"}} for torch in ("2.4", "2.5"))
    settings = LabelSettings()
    differences = check_same_run(
        manifest(settings, environment=before), manifest(settings, environment=now), Storage(url=str(tmp_path))
    )
    assert differences == ["torch: '2.4' before, '2.5' now"]


def test_a_refusal_names_the_version_of_this_program_that_wrote_out(tmp_path: Path) -> None:
    out, settings = Storage(url=str(tmp_path)), LabelSettings()
    ours = versions()["diffseg-pipeline"]
    expected = re.escape(f"It was written by diffseg-pipeline 99.0, and this is {ours}")
    newer = manifest(settings, environment={"versions": {"diffseg-pipeline": "99.0"}})
    with pytest.raises(RunRefused, match=expected):
        check_same_run(newer, manifest(LabelSettings(max_pixels=7)), out)
    out.write_bytes("run.json", json.dumps(dataclasses.asdict(newer) | {"format": 2}).encode())
    with pytest.raises(RunRefused, match=f'unknown field "format".*{expected}'):
        read_manifest(out)
    for environment in (None, [], {"versions": 7}, {"versions": {"diffseg-pipeline": [1]}}):
        values = dataclasses.asdict(newer) | {"format": 2, "environment": environment}
        out.write_bytes("run.json", json.dumps(values).encode())
        with pytest.raises(RunRefused, match=r"or name another OUT$"):
            read_manifest(out)


@pytest.mark.parametrize("wrong", [{"format": "webdataset"}, {"samples_per_shard": 0}, {"max_pixels": 0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        LabelSettings(**wrong)


def test_wrong_worker_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="batch size 0"):
        WorkerSettings(batch_size=0)


def test_versions_include_the_packages_that_touch_pixels() -> None:
    assert {"python", "torch", "diffusers", "pillow", "pyarrow"} <= set(versions())
