"""The evaluation of the embedded models: its samples, its cache of scores, its rows and its pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg.scoring.baselines import BASELINES, Grid
from diffseg.scoring.bootstrap import Interval
from diffseg.segmentation import IGNORE
from diffseg.tiny.evaluation.evaluate import Evaluation, main
from diffseg.tiny.evaluation.samples import Sample, SampleChoice, photograph_samples, sample_sets
from diffseg.tiny.evaluation.scoring import SCORES, Method, method_scores, score_intervals
from diffseg.tiny.evaluation.tables import format_difference, format_mean, markdown
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, VALIDATION_SEEDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's photographs, five of voc and none of coco; each has an upper and a lower region and a void line."""
    root = tmp_path_factory.mktemp("photographs")
    for part in ("images", "masks"):
        (root / "voc" / part).mkdir(parents=True)
    for index in range(5):
        ground_truth = np.full((60, 80), 15, np.uint8)
        ground_truth[30:] = 0
        ground_truth[30] = 255
        image = np.repeat(np.where(ground_truth == 15, 200, 40 + index)[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(image).save(root / "voc" / "images" / f"{index}.png")
        Image.fromarray(ground_truth).save(root / "voc" / "masks" / f"{index}.png")
    return root


def test_the_halves_are_disjoint_and_complete(folder: Path) -> None:
    names = {
        half: [sample.name for sample in photograph_samples(folder, "voc", half)]
        for half in ("development", "held-out", "all")
    }
    assert names == {"development": ["0", "2", "4"], "held-out": ["1", "3"], "all": ["0", "1", "2", "3", "4"]}


def test_a_photograph_has_ground_truth_and_void_pixels(folder: Path) -> None:
    first, second, *_ = photograph_samples(folder, "voc", "all")
    image, ground_truth = first.load()
    assert image.shape == (60, 80, 3)
    assert ground_truth.dtype == np.uint16
    assert [ground_truth[0, 0], ground_truth[30, 0], ground_truth[31, 0]] == [15, IGNORE, 0]
    assert first.key != second.key


def test_the_names_of_sets_describe_their_images(folder: Path) -> None:
    sets = sample_sets(SampleChoice(images=2, size=64, scenes="validation", photographs=folder))
    assert {name: [sample.name for sample in samples] for name, samples in sets.items()} == {
        "validation scenes: 2 images": [str(seed) for seed in VALIDATION_SEEDS[:2]],
        "development half of voc, 20 classes and background: 3 images": ["0", "2", "4"],
    }
    (held_out,) = sample_sets(SampleChoice(images=1, size=64)).values()
    assert held_out[0].name == str(HELD_OUT_SEEDS[0])


def test_errors_name_the_photograph_or_mask_that_is_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        SampleChoice(photographs=tmp_path / "none")
    (tmp_path / "voc" / "images").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "voc" / "images" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the image has no mask"):
        photograph_samples(tmp_path, "voc", "all")
    (tmp_path / "voc" / "masks").mkdir()
    Image.new("L", (20, 21)).save(tmp_path / "voc" / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"\(21, 20\); expected \(20, 20\)"):
        photograph_samples(tmp_path, "voc", "all")[0].load()


def test_scores_are_cached_even_if_the_scoring_is_interrupted(tmp_path: Path) -> None:
    ground_truth = np.repeat(np.arange(2, dtype=np.uint16), 32).reshape(2, 32).repeat(16, 0)
    samples = [Sample(name=key, key=key, load=lambda: (np.zeros((32, 32, 3), np.uint8), ground_truth)) for key in "abc"]
    segmented = []

    def segment(image: np.ndarray) -> np.ndarray:
        segmented.append(image)
        return Grid(rows=2, columns=1)(image)

    method = Method(key="halves", load=lambda: segment)
    first = iter(method_scores(method, samples, tmp_path))
    assert isinstance(first, Iterator)
    next(first)
    next(first)
    first.close()
    (cache,) = tmp_path.iterdir()
    cache.write_text(cache.read_text()[:-3])  # the last line is incomplete, as after a kill
    scores = np.array(list(method_scores(method, samples, tmp_path)))
    assert len(segmented) == 2 + 2
    np.testing.assert_array_equal(scores, list(method_scores(method, samples, tmp_path)))
    assert len(segmented) == 2 + 2
    list(method_scores(Method(key="others", load=lambda: segment), samples, tmp_path))
    assert len(segmented) == 2 + 2 + 3
    assert dict(zip(SCORES, scores[0], strict=True)) | {"seconds": 0} == {
        **dict.fromkeys(("covering", "miou", "best_iou", "boundary_f", "accuracy"), 1),
        "segments": 2,
        "seconds": 0,
    }


def test_intervals_ignore_samples_without_ground_truth() -> None:
    scores = np.array([[0.5] * len(SCORES), [np.nan] * len(SCORES), [0.7] * len(SCORES)])
    interval = score_intervals(scores)["covering"]
    assert interval.mean == pytest.approx(0.6)
    assert interval.count == 2


def test_the_command_writes_a_row_for_each_method_and_set(folder: Path, tmp_path: Path) -> None:
    samples = SampleChoice(images=1, captioned=1, size=128, photographs=folder, half="held-out")
    settings = Evaluation(samples=samples, untrained=1, pictures=1, out=tmp_path / "out")
    main(settings)
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(rows) == 3 * (4 + len(BASELINES))
    assert all(0 <= row["scores"]["covering"]["mean"] <= 1 for row in rows)
    assert {row["scores"]["covering"]["count"] for row in rows} == {1, 2}
    assert rows[0]["gain"]["covering"] == {"mean": 0, "half_width": 0, "count": 1}
    whole = next(row for row in rows if row["method"] == "one segment")
    gain = whole["scores"]["covering"]["mean"] - rows[0]["scores"]["covering"]["mean"]
    assert whole["gain"]["covering"]["mean"] == pytest.approx(gain)
    text = (tmp_path / "out" / "scores.md").read_text()
    assert text.count("\n| embedded model  ") == 3
    assert text.count("embedded model ahead of") == 3
    naming_rows = json.loads((tmp_path / "out" / "names.json").read_text())
    assert [row["names"] for row in naming_rows] == ["own", "all 18"] * 2
    assert text.count("random weights, all 18") == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "held-out-captioned-scenes.png",
        "held-out-half-of-voc.png",
        "held-out-scenes.png",
    ]


def test_the_columns_of_tables_are_aligned() -> None:
    assert markdown(["a", "score"], [["longer", "1"], ["b", "22"]]).splitlines() == [
        "| a      | score |",
        "| ------ | ----: |",
        "| longer |     1 |",
        "| b      |    22 |",
    ]
    assert format_mean("miou", Interval(mean=0.12345, half_width=0.01, count=3)) == "0.123 ± 0.010"
    assert format_mean("segments", Interval(mean=17.25, half_width=2, count=3)) == "17.2 ± 2.0"
    assert format_difference("covering", Interval(mean=-0.0312, half_width=0.01, count=3)) == "−0.031 ± 0.010"
    assert format_difference("covering", Interval(mean=0.0312, half_width=0.01, count=3)) == "+0.031 ± 0.010"
