"""Finding and reading ground truth as users store it: its keys, and the errors for files that cannot be read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_runs import write_png, write_run
from PIL import Image
from scipy.io import savemat
from tars import tar_of

from diffseg.segmentation import IGNORE
from pipeline.evaluation.decoders import GroundTruthError
from pipeline.evaluation.ground_truth import GroundTruth, find_ground_truth
from pipeline.evaluation.layouts import LayoutName
from pipeline.storage import SourceError, Storage

STORE = Storage(url=".")
LABELS = np.array([[1, 1, 2], [1, 2, 2]], np.uint8)


def png(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()


def read(ground_truth: GroundTruth) -> dict[str, list | str]:
    """Return the first annotator's classes, or the error message, by key."""
    keys = dict(enumerate(ground_truth.locations))
    results = ground_truth.read({number: ground_truth.locations[key] for number, key in keys.items()})
    return {
        keys[number]: str(result) if isinstance(result, GroundTruthError) else result[0].tolist()
        for number, result in results
    }


def test_ground_truth_is_distinguished_from_other_files_of_a_data_set(tmp_path: Path) -> None:
    city = tmp_path / "gtFine" / "val" / "ulm"
    for name in ("labelIds", "instanceIds", "color"):
        write_png(city / f"ulm_000000_000019_gtFine_{name}.png", LABELS + 6)
    ground_truth = find_ground_truth(str(tmp_path), STORE)
    assert ground_truth.layout_name == "cityscapes"
    assert read(ground_truth) == {
        "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png": [[0, 0, 1], [0, 1, 1]],
    }

    voc = tmp_path / "VOC2012"
    write_png(voc / "SegmentationClass" / "2007_000032.png", LABELS)
    write_png(voc / "SegmentationObject" / "2007_000032.png", LABELS)
    write_png(voc / "JPEGImages" / "2007_000032.png", np.zeros((2, 3, 3), np.uint8))
    for url in (voc, voc / "SegmentationClass", f"{voc}/SegmentationClass/*.png"):
        ground_truth = find_ground_truth(str(url), STORE)
        assert (ground_truth.layout_name, len(ground_truth.locations)) == ("voc", 1)
    flat = tmp_path / "flat"
    write_png(flat / "2007_000032.png", LABELS)
    assert find_ground_truth(str(flat), STORE).layout_name == "labels"
    assert len(find_ground_truth(str(flat), STORE, layout="voc").locations) == 1


def test_bsds_and_ade_folders_are_recognised(tmp_path: Path) -> None:
    cells = np.empty((1, 1), object)
    cells[0, 0] = {"Segmentation": LABELS.astype(np.uint16)}
    (tmp_path / "BSDS500" / "groundTruth" / "test").mkdir(parents=True)
    savemat(tmp_path / "BSDS500" / "groundTruth" / "test" / "100007.mat", {"groundTruth": cells})
    write_png(tmp_path / "BSDS500" / "images" / "test" / "100007.png", np.zeros((2, 3, 3), np.uint8))
    ground_truth = find_ground_truth(str(tmp_path / "BSDS500"), STORE)
    assert ground_truth.layout_name == "bsds500"
    assert read(ground_truth) == {"groundTruth/test/100007.mat": LABELS.tolist()}

    write_png(tmp_path / "ADE" / "annotations" / "ADE_val_00000001.png", LABELS)
    assert find_ground_truth(str(tmp_path / "ADE"), STORE).layout_name == "ade20k"


def panoptic(folder: Path, listed: tuple[str, ...] = ("1", "2", "3")) -> Path:
    """Write two PNGs of two segments, a person and grass, and a JSON that also lists a third file."""
    colours = np.stack([LABELS, np.zeros_like(LABELS), np.zeros_like(LABELS)], -1)
    for name in ("1", "2"):
        write_png(folder / "panoptic_val2017" / f"{name}.png", colours)
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 193}]
    annotations = [{"file_name": f"{name}.png", "segments_info": segments} for name in listed]
    (folder / "panoptic_val2017.json").write_text(json.dumps({"annotations": annotations}))
    return folder


@pytest.mark.parametrize("named", ["", "panoptic_val2017", "panoptic_val2017.json"])
def test_panoptic_pngs_are_read_with_their_json_whichever_of_them_is_passed(tmp_path: Path, named: str) -> None:
    ground_truth = find_ground_truth(str(panoptic(tmp_path) / named), STORE)
    assert ground_truth.layout_name == "coco-panoptic"
    person, plant = 9, 22
    results = read(ground_truth)
    assert results["1.png"] == results["2.png"] == [[person, person, plant], [person, plant, plant]]
    assert results["3.png"] == f"{tmp_path}/panoptic_val2017/3.png: cannot be opened (FileNotFoundError)"


def test_a_json_that_is_not_panoptic_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "masks" / "1.png", LABELS)
    (tmp_path / "masks.json").write_text("[]")
    assert (
        find_ground_truth(str(tmp_path / "masks"), STORE).layout_name == "labels"
    )  # a JSON of any other name is not looked at
    with pytest.raises(SourceError, match=r"masks\.json: is not a panoptic JSON"):
        find_ground_truth(str(tmp_path / "masks"), STORE, layout="coco-panoptic")
    with pytest.raises(SourceError, match=r"no panoptic_…\.json in it or beside it"):
        find_ground_truth(str(tmp_path), STORE, layout="coco-panoptic")


def test_tars_hold_ground_truth_in_a_field_beside_the_image(tmp_path: Path) -> None:
    image = png(np.zeros((2, 3, 3), np.uint8))
    members = (("a.png", image), ("a.seg.png", png(LABELS)), ("b.png", image), ("c.seg.png", png(LABELS)))
    (tmp_path / "1.tar").write_bytes(tar_of(*members, ("d.seg.png", b"no image")))
    (tmp_path / "2.tar").write_bytes(tar_of(("e.png", image), ("e.seg.png", png(LABELS))))
    results = read(find_ground_truth(str(tmp_path), STORE, field="seg.png"))
    assert {key: result for key, result in results.items() if key != "d"} == dict.fromkeys("ace", LABELS.tolist())
    assert results["d"].startswith("1: d: is not a PNG")
    without_field = read(find_ground_truth(str(tmp_path / "1.tar"), STORE))
    assert "mode RGB; expected one channel" in without_field["a"]


@pytest.mark.parametrize("layout", [None, "voc"])
def test_a_parquet_column_holds_ground_truth(tmp_path: Path, layout: LayoutName | None) -> None:
    table = {"key": ["a", "b"], "image": [b"", b""], "mask": [png(LABELS), png(LABELS + 20)]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    results = read(find_ground_truth(str(tmp_path), STORE, layout=layout, field="mask"))
    assert results["a"] == LABELS.tolist()
    assert results["b"] == (LABELS + 20).tolist() if layout is None else "ids 21, 22" in results["b"]


def test_another_run_can_be_the_ground_truth(tmp_path: Path) -> None:
    labels = np.array([[0, 1, IGNORE]], np.uint16)
    write_run(tmp_path, {"a.jpg": labels, "b.jpg": None, "c.jpg": labels + 0})
    assert read(find_ground_truth(str(tmp_path), STORE)) == dict.fromkeys(("a.jpg", "c.jpg"), labels.tolist())


def test_a_url_without_ground_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no \.tar"):
        find_ground_truth(str(tmp_path), STORE)
    write_png(tmp_path / "a.png", LABELS)
    with pytest.raises(SourceError, match=r"in the layout bsds500 was found\. Looked for \*\.mat; found"):
        find_ground_truth(str(tmp_path), STORE, layout="bsds500")


def test_another_layout_in_the_folder_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "val" / "aa_gtFine_labelTrainIds.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(SourceError, match="no files of the layout cityscapes, but files of the layout cityscapes-t"):
        find_ground_truth(str(tmp_path), Storage(url="."), layout="cityscapes")
    assert find_ground_truth(str(tmp_path), Storage(url=".")).layout_name == "cityscapes-train-ids"
