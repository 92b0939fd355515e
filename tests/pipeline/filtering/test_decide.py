"""The choice of the rows to keep, and the agreement of a label map with a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diffseg import IGNORE, Segmentation
from diffseg.segmentation import Segment
from pipeline.filtering.agreement import cv_iou, main_class
from pipeline.filtering.decide import decide
from pipeline.filtering.settings import FoldSettings, KeepSettings
from pipeline.output.keep import SCORE_FIELDS, kept_rows
from pipeline.output.rows import encode_mask
from pipeline.output.selection import RowSelection, split_of
from pipeline.storage import SourceError

SCORES = pa.Table.from_pylist(
    [
        {
            "key": key,
            "shard": "s",
            "index": index,
            "class": name,
            "cv_iou": cv,
            "confidence": confidence,
            "n_segments": 1,
        }
        for index, (key, name, cv, confidence) in enumerate(
            [
                ("a", "cat", 0.9, 0.1),
                ("b", "cat", 0.8, 0.9),
                ("c", "cat", 0.2, 0.8),
                ("d", "cat", None, 1.0),
                ("e", "dog", 0.3, 0.5),
                ("f", "dog", 0.1, 0.6),
            ]
        )
    ],
    pa.schema(SCORE_FIELDS),
)


def kept(**settings: Any) -> str:
    rows = decide(SCORES, KeepSettings(**settings)).to_pylist()
    return "".join(row["key"] for row in rows if row["keep"])


def test_the_best_share_of_each_class_is_kept() -> None:
    assert decide(SCORES, KeepSettings())["rank"].to_pylist() == [1, 2, 3, 4, 1, 2]
    assert kept(keep=0.5) == "abe"
    assert kept(keep=0.75) == "abcef"
    assert kept(keep=1) == "abcef", "a row without a score was kept"
    assert kept(keep=0) == ""
    assert kept(keep=0.5, by="confidence") == "bdf"


def test_the_mean_of_two_ranks_and_minima_decide() -> None:
    assert kept(keep=0.25, by="both") == "be"  # ranks by cv_iou 1 2 3 and 1 2, by confidence 4 2 3 and 2 1
    assert kept(keep=1, min_cv_iou=0.3) == "abe"
    assert kept(keep=1, min_cv_iou=0.3, min_confidence=0.5) == "be"
    assert kept(keep=1, min_agree_iou=0.1) == ""
    with pytest.raises(SourceError, match="only runs of `diffseg generate`"):
        kept(by="agree_iou")
    with pytest.raises(ValueError, match="expected 0 to 1"):
        KeepSettings(keep=1.1)


def test_a_selection_accepts_the_kept_rows() -> None:
    selection = RowSelection(kept=kept_rows(decide(SCORES, KeepSettings(keep=0.5))))
    assert selection.columns == {"shard", "index"}
    assert [index for index in range(9) if selection.accepts({"shard": "s", "index": index})] == [0, 1, 4]
    assert not selection.accepts({"shard": "other", "index": 0})
    other = RowSelection(kept=kept_rows(decide(SCORES, KeepSettings(keep=1))))
    assert selection.plain() != other.plain()


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_a_network_is_trained_on_all_rows_but_those_that_it_predicts(folds: int) -> None:
    settings = FoldSettings(folds=folds)
    sizes = [0] * folds
    for number in range(300):
        row = {"key": f"{number}.png"}
        fold = settings.fold_of(split_of(row["key"]))
        sizes[fold] += 1
        for each in range(folds):
            assert RowSelection(where=settings.other_folds(each)).accepts(row) == (each != fold)
    assert min(sizes) > 0.6 * 300 / folds


def segment(number: int, name: str | None, class_id: int | None, area: int = 1) -> dict[str, Any]:
    return {"id": number, "name": name, "class_id": class_id, "area": area}


def predicted(labels: list[list[int]], names: dict[int, str | None]) -> Segmentation:
    segments = [Segment(id=k, area=1, bbox=(0, 0, 1, 1), confidence=1.0, name=name) for k, name in names.items()]
    return Segmentation(labels=np.array(labels, np.uint16), segments=tuple(segments), confidence=1.0)


def test_the_iou_of_classes_is_the_mean_over_those_of_the_label_map() -> None:
    mask = np.array([[0, 0, 1, 1], [2, 2, IGNORE, 3]], np.uint16)
    segments = [segment(0, "background", 0), segment(1, "cat", 1), segment(2, "cat", 1), segment(3, None, -1)]
    row = {"mask": encode_mask(mask), "segments": segments}
    result = predicted([[5, 7, 7, 7], [7, 8, 8, 7]], {5: "background", 7: "cat", 8: "dog"})
    # Six pixels have a class. Background: 1 of 2. Cat: 3 shared, 4 in the row, 4 predicted, so 3 of 5.
    assert cv_iou(row, result, ("background", "cat", "dog")) == pytest.approx((1 / 2 + 3 / 5) / 2)
    unlabelled = {"mask": encode_mask(np.full((2, 4), IGNORE, np.uint16)), "segments": []}
    assert cv_iou(unlabelled, result, ("background", "cat", "dog")) is None
    assert cv_iou(unlabelled, result, ()) is None


def test_the_iou_without_classes_is_the_best_of_each_segment_weighted_by_area() -> None:
    row = {"mask": encode_mask(np.array([[0, 1, 1, 1]], np.uint16)), "segments": [segment(0, None, None)]}
    assert cv_iou(row, predicted([[3, 9, 9, 9]], {3: None, 9: None}), ()) == 1.0
    assert cv_iou(row, predicted([[3, 3, 3, 3]], {3: None}), ()) == pytest.approx((1 / 4 + 3 * 3 / 4) / 4)


def test_the_class_of_a_row_is_its_largest_but_background_only_if_it_is_alone() -> None:
    background, cat, dog = segment(0, "background", 0, 90), segment(1, "cat", 1, 4), segment(2, "dog", 2, 6)
    assert main_class({"segments": [background, cat, dog]}) == "dog"
    assert main_class({"segments": [background, cat, dog, segment(3, "cat", 1, 3)]}) == "cat"
    assert main_class({"segments": [background, segment(4, None, -1, 100)]}) == "background"
    assert main_class({"segments": [segment(0, None, None, 9)]}) is None
