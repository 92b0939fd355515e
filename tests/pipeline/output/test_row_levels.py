"""Rows with levels: their columns in both formats, and the label maps of other levels."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_runs import halves, write_run

from diffseg import Segmentation
from diffseg.levels import Cut
from diffseg.segmentation import Segment
from pipeline.output.commit import LabelShard
from pipeline.output.levels import RunCut, curve_cuts, stored_levels
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import SCHEMA, decode_mask, labelled_row, schema_of
from pipeline.output.writer import LabelShardWriter
from pipeline.readers.samples import Sample
from pipeline.settings import LabelSettings
from pipeline.storage import SourceError, Storage

LABELS = np.repeat([[0, 1, 2]], 4, axis=0).astype(np.uint16).repeat(4, axis=1)


def test_both_formats_hold_the_levels_of_a_row(tmp_path: Path) -> None:
    levels = halves(LABELS)
    segments = tuple(Segment(id=i, area=16, bbox=(4 * i, 0, 4, 4), confidence=0.5) for i in range(3))
    result = Segmentation(labels=LABELS, segments=segments, confidence=0.5, levels=levels)
    row = labelled_row(Sample(index=0, key="a", image=None), "s", result)
    failed = replace(row, key="b", index=1, status="undecodable", mask=None, leaf_mask=None, leaves=(), merges=())
    with LabelShardWriter("s", formats=("parquet", "webdataset"), metadata={}, levels=True) as writer:
        writer.add(row)
        writer.add(failed)
        writer.publish(Storage(url=str(tmp_path)))
    table = pq.read_table(tmp_path / "labels/s.parquet")
    assert table.schema.equals(schema_of(levels=True))
    assert table.schema.names[: len(SCHEMA.names)] == SCHEMA.names, "the columns of every run come first"
    for name in ("numbers", "segment_of_leaf", "leaf_confidences", "pairs", "heights", "confidences"):
        np.testing.assert_array_equal(getattr(stored_levels(table.to_pylist()[0]), name), getattr(levels, name))
    with tarfile.open(tmp_path / "webdataset/s.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert members.keys() == {"a.json", "a.png", "a.leaves.png", "b.json"}
    assert members["a.leaves.png"] == row.leaf_mask
    described = json.loads(members["a.json"])
    for name, values in (("leaves", row.leaves), ("merges", row.merges)):
        assert described[name] == {field: [value[field] for value in values] for field in values[0]}


def test_runs_without_levels_keep_their_fingerprint() -> None:
    assert "levels" not in LabelSettings().plain()
    assert LabelSettings(levels=True).plain()["levels"] is True


@pytest.fixture
def run(tmp_path: Path) -> tuple[Storage, Manifest, LabelShard]:
    write_run(tmp_path, {"a.png": LABELS, "b.png": None}, levels=True)
    out = Storage(url=str(tmp_path))
    manifest = require_manifest(out)
    return out, manifest, next(iter(read_run_commits(out, manifest).done))


def rows_at(run: tuple[Storage, Manifest, LabelShard], cut: Cut, columns: Any = SCHEMA.names) -> list[dict[str, Any]]:
    out, manifest, shard = run
    return list(label_rows(out, shard, columns, RunCut.of(cut, manifest, "OUT")))


def test_rows_at_the_threshold_of_the_run_are_those_of_the_run(run: tuple[Storage, Manifest, LabelShard]) -> None:
    out, _, shard = run
    assert rows_at(run, Cut(tau=0.4)) == list(label_rows(out, shard, SCHEMA.names))


def test_rows_of_another_level_differ_in_their_label_map_alone(run: tuple[Storage, Manifest, LabelShard]) -> None:
    before, failed = rows_at(run, Cut(tau=0.4))
    row, same = rows_at(run, Cut(segments=2))
    np.testing.assert_array_equal(decode_mask(row["mask"]), np.where(LABELS < 2, 0, 1))
    assert [(s["id"], s["area"], s["bbox"], s["confidence"]) for s in row["segments"]] == [
        (0, 32, [0, 0, 8, 4], 0.5),
        (1, 16, [8, 0, 4, 4], 1.0),
    ]
    assert (row["n_segments"], row["confidence"]) == (2, pytest.approx(2 / 3))
    changed = ("mask", "segments", "confidence", "n_segments")
    assert {name: row[name] for name in row if name not in changed} == {
        name: before[name] for name in before if name not in changed
    }
    assert same == failed
    assert rows_at(run, Cut(segments=2), ("key",)) == [{"key": "a.png"}, {"key": "b.png"}]


def test_a_threshold_in_nats_is_converted_for_other_distances(run: tuple[Storage, Manifest, LabelShard]) -> None:
    _, manifest, _ = run
    settings = {**manifest.settings, "method": {"distance": "hellinger"}}
    cut = RunCut.of(Cut(tau=0.4), replace(manifest, settings=settings), "OUT")
    assert 0 < cut.threshold < 0.4


def test_a_run_without_levels_has_no_other_level(tmp_path: Path) -> None:
    write_run(tmp_path, {"a.png": LABELS})
    with pytest.raises(SourceError, match="--levels"):
        RunCut.of(Cut(stable=True), require_manifest(Storage(url=str(tmp_path))), "OUT")


def test_a_curve_goes_from_half_to_four_times_the_threshold(run: tuple[Storage, Manifest, LabelShard]) -> None:
    cuts = [str(cut.cut) for cut in curve_cuts(run[1], "OUT")]
    assert cuts[0] == "tau 0.2"
    assert cuts[2] == "tau 0.4"
    assert cuts[-2:] == ["tau 1.6", "stable"]


def test_columns_that_do_not_fit_each_other_are_refused(run: tuple[Storage, Manifest, LabelShard]) -> None:
    out, _, shard = run
    row = next(label_rows(out, shard, schema_of(levels=True).names))
    with pytest.raises(SourceError, match="do not fit"):
        stored_levels({**row, "merges": row["merges"][1:]})
