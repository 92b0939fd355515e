"""Runs that name segments by a CLIP: its names are in the rows, and its files count in the fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_checkpoints import change_json
from small_clip import NAMES, SIDE, draw, write_clip
from small_siglip import write_siglip

from diffseg.model.files import fingerprint
from diffseg.model.layout import TINY, CheckpointError
from diffseg.settings import settings_of
from pipeline.errors import RunRefused
from pipeline.executor.driver import RunSummary, label_run
from pipeline.output.manifest import require_manifest
from pipeline.readers.names import NameSettings
from pipeline.references.learn import learn_references
from pipeline.references.retrieve import ReferenceSettings
from pipeline.references.state import RETRIEVAL
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage
from pipeline.weights import find_weights

pytestmark = pytest.mark.usefixtures("node_cache")

FAST = settings_of(resolution=64, anchors_per_side=4)
NAMING = NameSettings(names=NAMES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draw(generator)[0]).save(folder / f"{number}.png")
    return folder


def run(source: Path, out: Path, **label: object) -> RunSummary:
    settings = LabelSettings(**({"method": FAST, "naming": NAMING} | label))  # type: ignore[arg-type]
    return label_run(
        str(source), str(out), settings=settings, worker=WorkerSettings(device="cpu"), run=RunSettings(no_ray=True)
    )


def test_a_run_names_by_clip_and_its_files_count(clip: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert dict(run(pictures, out, clip=str(clip)).counts) == {"ok": 3}
    (table,) = (pq.read_table(path) for path in (out / "labels").glob("*.parquet"))
    for row in table.to_pylist():
        assert (row["height"], row["width"]) == (SIDE, SIDE)
        for segment in row["segments"]:
            assert segment["name"] in NAMES
            assert segment["class_id"] == NAMES.index(segment["name"]) + 1
            assert 0 < segment["name_score"] <= 1
    record = json.loads((out / "run.json").read_text())
    assert record["resolved"]["method"][-1] == "clip"
    assert record["settings"]["clip"] == str(clip)
    stored = Storage(url=f"memory://{tmp_path.name}/clip")
    for path in clip.iterdir():
        stored.write_file(path.name, path)
    assert run(pictures, out, clip=stored.url).done_before == 1, "the same files in a store make the same run"
    other = Path(shutil.copytree(clip, tmp_path / "other"))
    change_json(other / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    with pytest.raises(RunRefused, match="model_sha256"):
        run(pictures, out, clip=str(other))
    with pytest.raises(RunRefused, match=r"clip: .* in OUT, None now"):
        run(pictures, out, naming=NameSettings())
    words = NameSettings(names=NAMES, name_words={"red": ("square",)})
    with pytest.raises(RunRefused, match=r"name_words: None in OUT, \{'red': \['square'\]\} now"):
        run(pictures, out, clip=str(clip), naming=words)


def test_a_run_names_by_a_siglip_with_further_words_for_a_name(pictures: Path, tmp_path: Path) -> None:
    siglip = write_siglip(tmp_path / "siglip", "siglip")
    scores = []
    for number, words in enumerate(({}, {"cat": ("red shirt", "photo")})):
        out, names = tmp_path / str(number), NameSettings(names=("cat", "blue"), name_words=words)
        assert dict(run(pictures, out, clip=str(siglip), naming=names).counts) == {"ok": 3}
        (table,) = (pq.read_table(path) for path in (out / "labels").glob("*.parquet"))
        segments = [segment for row in table.to_pylist() for segment in row["segments"]]
        assert {segment["name"] for segment in segments} <= {"cat", "blue"}
        scores.append([segment["name_score"] for segment in segments])
    assert scores[0] != scores[1]


def test_references_that_a_clip_retrieved_name_segments_without_it(clip: Path, pictures: Path, tmp_path: Path) -> None:
    out, state = Storage(url=str(tmp_path / "out")), Storage(url=str(tmp_path / "state"))
    run(pictures, tmp_path / "out", clip=str(clip), features=True)
    manifest = require_manifest(out)
    assert manifest.model_sha256 != manifest.resolved["checkpoint_sha256"] == fingerprint(TINY)
    report = learn_references(out, manifest, ReferenceSettings(naming=NAMING, by="names"), state)
    assert report.route == "names of segments, given by a CLIP"
    found = pq.read_table(tmp_path / "state" / RETRIEVAL).to_pylist()
    assert {row["score"] for row in found} <= {
        segment["name_score"]
        for path in (tmp_path / "out" / "labels").iterdir()
        for row in pq.read_table(path).to_pylist()
        for segment in row["segments"]
    }, "images are retrieved by the scores of the CLIP"
    assert dict(run(pictures, tmp_path / "named", references=state.url, naming=NameSettings()).counts) == {"ok": 3}
    assert require_manifest(Storage(url=str(tmp_path / "named"))).resolved["references"]


def test_a_url_without_a_clip_is_refused(tmp_path: Path) -> None:
    store = Storage(url=f"memory://{tmp_path.name}/none")
    settings = LabelSettings(clip=store.url, naming=NAMING)
    store.write_bytes("unet/config.json", b"{}")
    with pytest.raises(CheckpointError, match=r"looked for config\.json and found none.*in the transformers layout"):
        find_weights(settings, Storage(url="."))
    store.write_bytes("config.json", b"{}")
    store.write_bytes("pytorch_model.bin", b"")
    with pytest.raises(CheckpointError, match=r"looked for model\.safetensors .* Only safetensors are loaded"):
        find_weights(settings, Storage(url="."))


def test_a_url_with_a_model_of_open_clip_is_copied(tmp_path: Path) -> None:
    """Its files count in the digest of the model; where a URL has both layouts, those of transformers are copied."""
    store = Storage(url=f"memory://{tmp_path.name}/open_clip")
    settings, here = LabelSettings(clip=store.url, naming=NAMING), Storage(url=".")
    store.write_bytes("open_clip_config.json", b"{}")
    store.write_bytes("open_clip_model.safetensors", b"1")
    store.write_bytes("open_clip_pytorch_model.bin", b"never read")
    weights = find_weights(settings, here)
    assert weights.clip is not None
    copied = {path.name for path in weights.clip.iterdir()}
    assert copied == {"open_clip_config.json", "open_clip_model.safetensors", "record.json"}
    store.write_bytes("open_clip_model.safetensors", b"2")
    assert find_weights(settings, here).fingerprint() != weights.fingerprint()
    store.write_bytes("config.json", b"{}")
    store.write_bytes("model.safetensors", b"3")
    both = find_weights(settings, here).clip
    assert both is not None
    assert {path.name for path in both.iterdir()} == {"config.json", "model.safetensors", "record.json"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": settings_of(method=("diffseg", "clip"))},
            "clip None: .* give both, the stage and its checkpoint",
        ),
        ({"method": settings_of(method=("diffseg", "cross")), "clip": "a/b"}, "clip a/b: .* give both"),
        ({"clip": "a/b", "naming": NameSettings()}, "clip a/b names segments: give names, or a caption field"),
        ({"clip": "s3://key:secret@bucket/clip"}, r"s3://bucket/clip: a model's URL with a user name"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        LabelSettings(**({"naming": NAMING} | settings))  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)
