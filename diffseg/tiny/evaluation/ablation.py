"""Score settings of the segmenter with the embedded model: `python -m diffseg.tiny.evaluation.ablation`.

Each row is scored on the same images as the default settings and compared with them image by image. Scores are cached,
so the command can be stopped and resumed, and it scores only new rows when settings are added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from diffseg.model.layout import read_json
from diffseg.settings import SegmenterSettings, settings_of
from diffseg.tiny.evaluation.samples import SampleChoice
from diffseg.tiny.evaluation.scoring import Method, ScoreRow, compare_methods, model_method
from diffseg.tiny.evaluation.tables import column_heading, format_difference, format_mean, markdown
from diffseg.tiny.recipe.export import CHECKPOINT

__all__ = ["VARIANTS", "Ablation", "report"]

PLAIN: Mapping[str, Any] = {
    "assign": "peak",
    "method": "diffseg",
    "distance": "kl",
    "flip": False,
    "crops": 0,
    "min_area": 0.0,
    "stable": False,
}
NEAREST = {**PLAIN, "assign": "nearest"}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "plain DiffSeg, as in the paper (assign=peak)": PLAIN,
    "assign=nearest": NEAREST,
    "assign=nearest, flip": {**NEAREST, "flip": True},
    "assign=nearest, crops=2": {**NEAREST, "crops": 2},
    "assign=nearest, method=diffseg,par": {**NEAREST, "method": "diffseg,par"},
    "assign=nearest, min_area=0.002": {**NEAREST, "min_area": 0.002},
    "assign=nearest, stable": {**NEAREST, "stable": True},
    "with flip": {"flip": True},
    "without flip": {"flip": False},
    "with crops=2": {"crops": 2},
    "with crops=3": {"crops": 3},
    "without crops": {"crops": 0},
    "method=diffseg,par": {"method": "diffseg,par"},
    "method=diffseg": {"method": "diffseg"},
    "with min_area=0.002": {"min_area": 0.002},
    "without min_area": {"min_area": 0.0},
    "with stable": {"stable": True},
    "without stable": {"stable": False},
    "method=ncut,par": {"method": "ncut,par"},
    "method=ncut,par, ncut_steps=2": {"method": "ncut,par", "ncut_steps": 2},
    "method=ncut,par, ncut_steps=4": {"method": "ncut,par", "ncut_steps": 4},
    "method=ncut,par, stable": {"method": "ncut,par", "stable": True},
    "method=ncut,par, ncut_on=features": {"method": "ncut,par", "ncut_on": "features"},
    "method=covariance,par": {"method": "covariance,par"},
    "method=covariance,par, covariance_segments=diffseg": {
        "method": "covariance,par",
        "covariance_segments": "diffseg",
    },
    "distance=js": {"distance": "js"},
    "distance=hellinger": {"distance": "hellinger"},
    "distance=pearson": {"distance": "pearson"},
    "distance=wasserstein": {"distance": "wasserstein"},
    "distance=sliced": {"distance": "sliced"},
    "distance=gaussian": {"distance": "gaussian"},
    "resolution=384": {"resolution": 384},
    "resolution=512": {"resolution": 512},
}
"""Settings by the name of their row; rows whose settings equal those of an earlier row are left out."""

COMPARED = ("covering", "miou", "best_iou", "boundary_f")
"""Scores whose differences from the default settings are shown."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Compare settings of the segmenter with the default settings, with 95 % intervals of the differences.

    Attributes:
        samples: Images to score on.
        model: Folder in the layout of the embedded checkpoint.
        rows: Names of the rows to score, see `VARIANTS`; without names, all rows are scored.
        threads: Threads of torch.
        out: Folder for cached scores, ablation.md and ablation.json.
    """

    samples: tyro.conf.OmitArgPrefixes[SampleChoice] = field(default_factory=SampleChoice)
    model: Path = CHECKPOINT
    rows: tuple[str, ...] = ()
    threads: int = 1
    out: Path = Path("tiny-eval")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rows) - set(VARIANTS))
        if unknown:
            raise ValueError(f"rows={unknown}: unknown names, expected some of {', '.join(VARIANTS)}")


def methods_of(ablation: Ablation) -> dict[str, list[Method]]:
    """Return the default row and then the requested rows; of rows with equal settings, only the first is kept."""
    default_method = tuple(read_json(ablation.model / "diffseg.json").get("method", ["diffseg"]))
    rows: dict[SegmenterSettings, str] = {}
    for name in ("default", *(ablation.rows or VARIANTS)):
        settings = settings_of(**VARIANTS[name])
        rows.setdefault(replace(settings, method=settings.method or default_method), name)
    return {name: [model_method(ablation.model, **VARIANTS[name])] for name in rows.values()}


def report(rows: Sequence[ScoreRow]) -> str:
    """Return a Markdown table for each set: mean scores, and in brackets their differences from the default row."""
    parts = []
    for samples in dict.fromkeys(row.samples for row in rows):
        rows_of_set = [row for row in rows if row.samples == samples]
        columns = [*COMPARED, "segments", "seconds"]
        table = [[row.method, *(_cell(name, row, row is rows_of_set[0]) for name in columns)] for row in rows_of_set]
        parts += [f"### {samples}", markdown(["settings", *map(column_heading, columns)], table)]
    return "\n\n".join(parts)


def _cell(score: str, row: ScoreRow, is_default: bool) -> str:
    if is_default or score not in COMPARED:
        return format_mean(score, row.scores[score])
    return f"{row.scores[score].mean:.3f} ({format_difference(score, row.gain[score])})"


def main(ablation: Ablation) -> None:
    """Print the tables, and write them and the scores into the folder."""
    torch.set_num_threads(ablation.threads)
    rows = list(compare_methods(methods_of(ablation), ablation.samples, ablation.out / "scored"))
    text = report(rows)
    print(text)
    (ablation.out / "ablation.md").write_text(text + "\n")
    (ablation.out / "ablation.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Ablation))
