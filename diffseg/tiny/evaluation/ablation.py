"""What each setting of the segmenter is worth with the embedded model: `python -m diffseg.tiny.evaluation.ablation`.

Each row is scored on the same images as the default settings and compared with them image by image. What was scored is
kept, so the command can be stopped, goes on where it was, and takes only new rows when settings are added.
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
from diffseg.tiny.evaluation.samples import Choice
from diffseg.tiny.evaluation.scoring import Method, Row, compare, model_method
from diffseg.tiny.evaluation.tables import heading, markdown, number, signed
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
    "distance=js": {"distance": "js"},
    "distance=hellinger": {"distance": "hellinger"},
    "distance=pearson": {"distance": "pearson"},
    "distance=wasserstein": {"distance": "wasserstein"},
    "distance=sliced": {"distance": "sliced"},
    "distance=gaussian": {"distance": "gaussian"},
    "resolution=384": {"resolution": 384},
    "resolution=512": {"resolution": 512},
}
"""By name, the fields that are given. Some say what the default says anyway, whatever it is; they are left out."""

COMPARED = ("covering", "miou", "best_iou", "boundary_f")


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Score settings of the segmenter beside the default ones, with 95 % intervals of the differences.

    Attributes:
        samples: on what to score.
        model: a folder in the layout of the embedded checkpoint.
        rows: names of the rows to score, see VARIANTS; all where none is given.
        threads: of torch.
        out: a folder for what was scored, and for ablation.md and ablation.json.
    """

    samples: tyro.conf.OmitArgPrefixes[Choice] = field(default_factory=Choice)
    model: Path = CHECKPOINT
    rows: tuple[str, ...] = ()
    threads: int = 1
    out: Path = Path("tiny-eval")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rows) - set(VARIANTS))
        if unknown:
            raise ValueError(f"rows={unknown}: expected some of {', '.join(VARIANTS)}")


def methods_of(ablation: Ablation) -> dict[str, list[Method]]:
    """The default first, then the rows that were asked for, of those that come to the same settings one."""
    own = tuple(read_json(ablation.model / "diffseg.json").get("method", ["diffseg"]))
    rows: dict[SegmenterSettings, str] = {}
    for name in ("default", *(ablation.rows or VARIANTS)):
        settings = settings_of(**VARIANTS[name])
        rows.setdefault(replace(settings, method=settings.method or own), name)
    return {name: [model_method(ablation.model, **VARIANTS[name])] for name in rows.values()}


def report(rows: Sequence[Row]) -> str:
    """A table in Markdown for each set: means, and in brackets how much they are above the default's."""
    parts = []
    for samples in dict.fromkeys(row.samples for row in rows):
        here = [row for row in rows if row.samples == samples]
        columns = [*COMPARED, "segments", "seconds"]
        table = [[row.method, *(_cell(name, row, row is here[0]) for name in columns)] for row in here]
        parts += [f"### {samples}", markdown(["settings", *map(heading, columns)], table)]
    return "\n\n".join(parts)


def _cell(score: str, row: Row, is_default: bool) -> str:
    if is_default or score not in COMPARED:
        return number(score, row.scores[score])
    return f"{row.scores[score].mean:.3f} ({signed(score, row.gain[score])})"


def main(ablation: Ablation) -> None:
    """Print the tables and write them and the figures into the folder."""
    torch.set_num_threads(ablation.threads)
    rows = list(compare(methods_of(ablation), ablation.samples, ablation.out / "scored"))
    text = report(rows)
    print(text)
    (ablation.out / "ablation.md").write_text(text + "\n")
    (ablation.out / "ablation.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Ablation))
