"""The scores of images that `diffseg evaluate` has written beside the page."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffseg.scoring.scores import IMAGE_SCORES
from pipeline.evaluation.score import THIS_RUN
from pipeline.spreadsheet import text_cell
from pipeline.storage import Storage

FOLDER = "report"
FILE = "images.csv"
MAIN_SCORE = IMAGE_SCORES.index("covering")
"""Position of the score by which the gallery is filtered and sorted; `diffseg evaluate` ranks images by it too."""
NAMELESS = "evaluate"
"""Stands for the evaluation without --name."""
MAX_EVALUATIONS = 20
"""Evaluations that are read, the first by name."""

ImageScores = tuple[float | None, ...]
"""Scores of an image in the order of `IMAGE_SCORES`; None where an image has no such score."""
RowScores = Mapping[tuple[int, str], Mapping[str, ImageScores]]
"""Scores by evaluation, by index of the row and cell of its key. A row that now has another key has no scores."""


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The scores of all evaluations of a run.

    Attributes:
        names: Names of the evaluations.
        by_shard: Scores of each label shard, by the cell of its name.
        problems: Why an evaluation could not be read, by path.
    """

    names: list[str] = field(default_factory=list)
    by_shard: Mapping[str, RowScores] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    def of_shard(self, shard: str) -> RowScores:
        """Return the scores of a label shard."""
        return self.by_shard.get(text_cell(shard), {})


def read_evaluations(out: Storage, tags: Mapping[str, str]) -> Evaluations:
    """Read OUT/report/images.csv, and those of evaluations with a name.

    Args:
        out: OUT of the run.
        tags: The tag of each label shard of the run. Scores of labels that were replaced later are left out.
    """
    tag_of_cell = {text_cell(shard): tag for shard, tag in tags.items()}
    by_shard: defaultdict[str, defaultdict[tuple[int, str], dict[str, ImageScores]]]
    by_shard = defaultdict(lambda: defaultdict(dict))
    names, problems = [], {}
    paths = [path for path, _ in out.files(FOLDER, depth=2) if path.rpartition("/")[2] == FILE]
    for path in paths[:MAX_EVALUATIONS]:
        name = path.removeprefix(f"{FOLDER}/").rpartition("/")[0] or NAMELESS
        try:
            for shard, tag, row, scores in _read(out, path):
                if tag in (None, tag_of_cell.get(shard)):
                    by_shard[shard][row][name] = scores
            names.append(name)
        except (csv.Error, KeyError, TypeError, ValueError, OSError) as error:
            problems[path] = f"{type(error).__name__}: {error}"
    return Evaluations(names=names, by_shard=by_shard, problems=problems)


def key_cell(key: str) -> str:
    """Return a key as `diffseg evaluate` writes it into a cell."""
    return text_cell(key).encode("utf-8", "backslashreplace").decode()


def _read(out: Storage, path: str) -> list[tuple[str, str | None, tuple[int, str], ImageScores]]:
    """Return shard, tag, row and key, and scores of each image in a CSV file; older files have no tags."""
    found = []
    with out.open(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        for line in csv.DictReader(text):
            if line["method"] == THIS_RUN:
                scores = tuple(float(line[name]) if line[name] else None for name in IMAGE_SCORES)
                found.append((line["shard"], line.get("tag"), (int(line["row"]), line["key"]), scores))
    return found
