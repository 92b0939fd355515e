"""The table of what the embedded model must beat: its samples, what it keeps, its rows, its pictures."""

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
from diffseg.tiny.evaluation.samples import Choice, Sample, chosen, photographs
from diffseg.tiny.evaluation.scoring import SCORES, Method, intervals, scores_of
from diffseg.tiny.evaluation.tables import markdown, number, signed
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, VALIDATION_SEEDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs as a user has them: five of voc, none of coco; an upper and a lower half, and a void line."""
    root = tmp_path_factory.mktemp("photographs")
    for part in ("images", "masks"):
        (root / "voc" / part).mkdir(parents=True)
    for index in range(5):
        truth = np.full((60, 80), 15, np.uint8)
        truth[30:] = 0
        truth[30] = 255
        image = np.repeat(np.where(truth == 15, 200, 40 + index)[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(image).save(root / "voc" / "images" / f"{index}.png")
        Image.fromarray(truth).save(root / "voc" / "masks" / f"{index}.png")
    return root


def test_halves_share_nothing_and_miss_nothing(folder: Path) -> None:
    names = {
        half: [one.name for one in photographs(folder, "voc", half)] for half in ("development", "held-out", "all")
    }
    assert names == {"development": ["0", "2", "4"], "held-out": ["1", "3"], "all": ["0", "1", "2", "3", "4"]}


def test_a_photograph_has_its_truth_and_its_void(folder: Path) -> None:
    first, second, *_ = photographs(folder, "voc", "all")
    image, truth = first.load()
    assert image.shape == (60, 80, 3)
    assert truth.dtype == np.uint16
    assert [truth[0, 0], truth[30, 0], truth[31, 0]] == [15, IGNORE, 0]
    assert first.key != second.key


def test_sets_are_named_with_what_is_in_them(folder: Path) -> None:
    sets = chosen(Choice(images=2, size=64, scenes="validation", photographs=folder))
    assert {name: [one.name for one in samples] for name, samples in sets.items()} == {
        "validation scenes: 2 images": [str(seed) for seed in VALIDATION_SEEDS[:2]],
        "development half of voc, 20 classes and background: 3 images": ["0", "2", "4"],
    }
    (held_out,) = chosen(Choice(images=1, size=64)).values()
    assert held_out[0].name == str(HELD_OUT_SEEDS[0])


def test_what_is_wrong_with_photographs_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Choice(photographs=tmp_path / "none")
    (tmp_path / "voc" / "images").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "voc" / "images" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: has no mask"):
        photographs(tmp_path, "voc", "all")
    (tmp_path / "voc" / "masks").mkdir()
    Image.new("L", (20, 21)).save(tmp_path / "voc" / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"\(21, 20\); expected \(20, 20\)"):
        photographs(tmp_path, "voc", "all")[0].load()


def test_what_was_scored_is_kept_even_by_one_that_was_stopped(tmp_path: Path) -> None:
    truth = np.repeat(np.arange(2, dtype=np.uint16), 32).reshape(2, 32).repeat(16, 0)
    samples = [Sample(name=key, key=key, load=lambda: (np.zeros((32, 32, 3), np.uint8), truth)) for key in "abc"]
    seen = []

    def segment(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return Grid(rows=2, columns=1)(image)

    method = Method(key="halves", load=lambda: segment)
    first = iter(scores_of(method, samples, tmp_path))
    assert isinstance(first, Iterator)
    next(first)
    next(first)
    first.close()
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:-3])  # as a killed one leaves it
    again = np.array(list(scores_of(method, samples, tmp_path)))
    assert len(seen) == 2 + 2
    np.testing.assert_array_equal(again, list(scores_of(method, samples, tmp_path)))
    assert len(seen) == 2 + 2
    list(scores_of(Method(key="others", load=lambda: segment), samples, tmp_path))
    assert len(seen) == 2 + 2 + 3
    assert dict(zip(SCORES, again[0], strict=True)) | {"seconds": 0} == {
        **dict.fromkeys(("covering", "miou", "best_iou", "boundary_f", "accuracy"), 1),
        "segments": 2,
        "seconds": 0,
    }


def test_intervals_leave_out_what_has_no_truth() -> None:
    scores = np.array([[0.5] * len(SCORES), [np.nan] * len(SCORES), [0.7] * len(SCORES)])
    interval = intervals(scores)["covering"]
    assert interval.mean == pytest.approx(0.6)
    assert interval.count == 2


def test_the_command_writes_a_row_for_every_method_and_set(folder: Path, tmp_path: Path) -> None:
    samples = Choice(images=1, captioned=1, size=128, photographs=folder, half="held-out")
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
    named = json.loads((tmp_path / "out" / "names.json").read_text())
    assert [row["names"] for row in named] == ["own", "all 18"] * 2
    assert text.count("random weights, all 18") == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "held-out-captioned-scenes.png",
        "held-out-half-of-voc.png",
        "held-out-scenes.png",
    ]


def test_tables_stand_in_line() -> None:
    assert markdown(["a", "score"], [["longer", "1"], ["b", "22"]]).splitlines() == [
        "| a      | score |",
        "| ------ | ----: |",
        "| longer |     1 |",
        "| b      |    22 |",
    ]
    assert number("miou", Interval(mean=0.12345, half_width=0.01, count=3)) == "0.123 ± 0.010"
    assert number("segments", Interval(mean=17.25, half_width=2, count=3)) == "17.2 ± 2.0"
    assert signed("covering", Interval(mean=-0.0312, half_width=0.01, count=3)) == "−0.031 ± 0.010"
    assert signed("covering", Interval(mean=0.0312, half_width=0.01, count=3)) == "+0.031 ± 0.010"
