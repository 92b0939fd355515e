"""References that are learned from the rows of planted runs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reference_runs import BY_LABELS, DIRECTIONS, NAMES, SIZE, PlantedImage, planted_images, write_feature_run
from safetensors.numpy import load_file

from diffseg.references import Elimination
from pipeline.output.manifest import require_manifest
from pipeline.output.rows import schema_of
from pipeline.readers.find import find_shards
from pipeline.readers.names import NameReader, NameSettings
from pipeline.readers.read import read_shard
from pipeline.references.learn import learn_references
from pipeline.references.retrieve import ReferenceSettings
from pipeline.references.state import ReferenceReport, load_references
from pipeline.storage import SourceError, Storage


def learn(out: Path, state: Path, **settings: Any) -> ReferenceReport:
    storage = Storage(url=str(out))
    chosen = ReferenceSettings(**{"naming": BY_LABELS, "contexts": 1, **settings})
    return learn_references(storage, require_manifest(storage), chosen, Storage(url=str(state)))


def test_references_point_at_the_objects_and_leave_out_the_most_frequent_name(tmp_path: Path) -> None:
    write_feature_run(tmp_path / "out", planted_images() | {"bad.png": None})
    report = learn(tmp_path / "out", tmp_path / "state")
    assert (report.images, report.unused, report.contexts) == (24, 0, ["sky"])
    assert {name: facts["images"] for name, facts in report.names.items()} == {"cat": 10, "dog": 10, "sky": 20}
    references = load_references(Storage(url=str(tmp_path / "state")))
    assert references.names == NAMES
    cosines = references.cosines(np.stack([*DIRECTIONS.values()]) + references.mean)
    assert cosines.argmax(axis=0).tolist() == [0, 1, 2]
    learn(tmp_path / "out", tmp_path / "alike", elimination=Elimination(alike=1.0, temperature=1e-9))
    confused = load_references(Storage(url=str(tmp_path / "alike")))
    assert confused.cosines(np.stack([*DIRECTIONS.values()]) + confused.mean)[2].tolist() == pytest.approx(
        [1, 1, 1], abs=0.3
    ), "without elimination every name is the sky, which all images share"


def test_the_table_of_retrieved_images_names_the_seed_of_each(tmp_path: Path) -> None:
    images = planted_images()
    first = images["000.png"]
    assert first is not None
    write_feature_run(tmp_path / "out", images | {"copy.png": first})
    learn(tmp_path / "out", tmp_path / "state")
    rows = pq.read_table(tmp_path / "state" / "retrieval.parquet").to_pylist()
    cats = [row for row in rows if row["name"] == "cat"]
    assert [row["rank"] for row in cats] == [*range(11)]
    for row in cats:
        image = images.get(row["key"])
        if row["key"] == "copy.png":
            assert row["segment"] is None, "a copy counts once"
        else:
            assert image is not None
            assert image.names[row["segment"]] == "cat"
            assert 0 < row["support"] <= 1


@pytest.mark.parametrize("settings", [{}, {"centroids": 2, "background": 3}], ids=["means", "centroids"])
def test_the_same_rows_in_other_shards_give_the_same_bytes(settings: dict[str, int], tmp_path: Path) -> None:
    images = planted_images()
    shuffled = {key: images[key] for key in np.random.default_rng(1).permutation([*images])}
    write_feature_run(tmp_path / "a", images, per_shard=4)
    write_feature_run(tmp_path / "b", shuffled, per_shard=7)
    for name in "ab":
        learn(tmp_path / name, tmp_path / f"state {name}", images=6, **settings)
    a, b = ((tmp_path / f"state {name}" / "references.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_the_images_of_a_name_are_those_with_the_best_scores(tmp_path: Path) -> None:
    write_feature_run(tmp_path / "out", planted_images())
    report = learn(tmp_path / "out", tmp_path / "state", by="names", naming=NameSettings(names=NAMES), images=3)
    assert {name: facts["retrieved"] for name, facts in report.names.items()} == dict.fromkeys(NAMES, 3)
    rows = pq.read_table(tmp_path / "state" / "retrieval.parquet").to_pylist()
    assert {row["score"] for row in rows} == {0.25}
    whole = learn(tmp_path / "out", tmp_path / "whole", by="names", naming=NameSettings(names=NAMES), images=100)
    assert whole.names["sky"]["retrieved"] == 20
    of_whole = pq.read_table(tmp_path / "whole" / "retrieval.parquet").to_pylist()
    for name in NAMES:
        best = [row["key"] for row in of_whole if row["name"] == name][:3]
        assert [row["key"] for row in rows if row["name"] == name] == best, "dropping candidates early changes nothing"


def test_states_without_centroids_are_those_of_earlier_versions(tmp_path: Path) -> None:
    write_feature_run(tmp_path / "out", planted_images())
    learn(tmp_path / "out", tmp_path / "state")
    assert {*load_file(tmp_path / "state" / "references.safetensors")} == {"mean", "references"}
    settings = load_references(Storage(url=str(tmp_path / "state"))).settings
    assert {*settings} == {"naming", "by", "images", "contexts", "elimination", "run"}


def test_segments_that_are_background_by_name_become_centroids_of_the_background(tmp_path: Path) -> None:
    images = planted_images()
    grass, water = np.eye(SIZE)[[5, 6]]
    for number, (key, image) in enumerate(images.items()):
        assert image is not None
        place = image.names.index(None)
        features, names = image.features.copy(), [*image.names]
        features[place], names[place] = (0.5 * grass if number % 2 else 0.5 * water), "background"
        images[key] = image._replace(features=features, names=names)
    write_feature_run(tmp_path / "out", images)
    report = learn(tmp_path / "out", tmp_path / "state", by="names", naming=NameSettings(names=NAMES), background=2)
    assert report.route == "names of segments, given by the run"
    references = load_references(Storage(url=str(tmp_path / "state")))
    segments = np.stack([*DIRECTIONS.values(), grass, water]) + references.mean
    names = [name for name, _ in references.name_segments(segments)]
    assert names == [*NAMES, "background", "background"]


def test_rows_of_a_generated_run_are_a_source_whose_classes_are_labels(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    schema = schema_of(generated=True)
    row = dict.fromkeys(schema.names) | {"key": "a", "image": buffer.getvalue(), "classes": ["cat"], "prompt": "a dog"}
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "generated.parquet")
    (shard,) = find_shards(str(tmp_path))
    (sample,) = read_shard(shard, Storage(url="."), image_field="image")
    assert (sample.key, sample.image) == ("a", buffer.getvalue())
    assert NameReader(NameSettings(names=NAMES, labels_field="classes"))(sample).names == ("cat",)
    assert NameReader(NameSettings(names=NAMES, caption_field="prompt"))(sample).names == ("dog",)


def test_images_without_the_field_are_counted_and_the_others_used(tmp_path: Path) -> None:
    images = planted_images()
    images["none.png"] = PlantedImage(features=np.eye(SIZE)[:2] / 2)
    write_feature_run(tmp_path / "out", images)
    report = learn(tmp_path / "out", tmp_path / "state")
    assert report.unused == 1
    assert "none.png: field 'labels': is not there" in report.problems[0]


def test_a_second_call_reads_no_rows(tmp_path: Path) -> None:
    write_feature_run(tmp_path / "out", planted_images())
    report = learn(tmp_path / "out", tmp_path / "state")
    shutil.rmtree(tmp_path / "out" / "labels")
    assert learn(tmp_path / "out", tmp_path / "state") == report
    with pytest.raises(FileNotFoundError):
        learn(tmp_path / "out", tmp_path / "state", contexts=2)


def test_a_run_without_features_or_names_is_refused(tmp_path: Path) -> None:
    write_feature_run(tmp_path / "out", {"a.png": PlantedImage(features=np.eye(SIZE)[:2], fields={"labels": []})})
    with pytest.raises(SourceError, match="no labelled image shows a name"):
        learn(tmp_path / "out", tmp_path / "state")
    with pytest.raises(ValueError, match="--labels-field"):
        ReferenceSettings(naming=NameSettings(names=NAMES))
    with pytest.raises(SourceError, match="STATE of `diffseg fit references`"):
        load_references(Storage(url=str(tmp_path / "missing")))
