"""How good the embedded model is beside what it must beat: `python -m diffseg.tiny.evaluation.evaluate`.

Training, tuning and this table use three disjoint ranges of scene seeds (diffseg.tiny.scenes.scenes); nothing is ever chosen
on photographs. What was scored is kept, so a command that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console

from diffseg.drawing.overlay import contact_sheet, overlay
from diffseg.scoring.baselines import LEFT_OUT
from diffseg.scoring.bootstrap import Interval
from diffseg.tiny.evaluation.names import NamedRow, name_rows, names_table
from diffseg.tiny.evaluation.samples import SEEDS, Choice, Sample, captioned_samples, chosen
from diffseg.tiny.evaluation.scoring import Method, Row, Segment, baseline_methods, compare, model_method
from diffseg.tiny.evaluation.tables import heading, markdown, number, signed
from diffseg.tiny.evaluation.untrained import UNTRAINED_TAU, write_untrained
from diffseg.tiny.recipe.export import CHECKPOINT
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT

__all__ = ["Evaluation", "report"]

COMPARED = ("covering", "miou", "best_iou", "boundary_f", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score the embedded model and what it must beat, with 95 % intervals, and each difference image by image.

    Attributes:
        samples: on what to score.
        model: a folder in the layout of the embedded checkpoint.
        text_model: one that reads text: its masks are scored beside the others', and its names on captioned scenes.
        untrained: number of random weightings of the same network to average over.
        pictures: images of each set to draw with their truth, our labels and Felzenszwalb's.
        threads: of torch.
        out: a folder for what was scored, and for scores.md, scores.json and the pictures.
    """

    samples: tyro.conf.OmitArgPrefixes[Choice] = field(default_factory=lambda: Choice(captioned=60))
    model: Path = CHECKPOINT
    text_model: Path = TEXT_CHECKPOINT
    untrained: int = 3
    pictures: int = 12
    threads: int = 1
    out: Path = Path("tiny-eval")


def _methods(settings: Evaluation) -> Mapping[str, Sequence[Method]]:
    """By their names in the table, the variants that are averaged over."""
    model = settings.model
    methods = {
        "embedded model": [model_method(model)],
        "the same, assign=peak as in the paper": [model_method(model, assign="peak")],
        "the one that reads text, told nothing": [model_method(settings.text_model)],
    }
    methods |= {name: [method] for name, method in baseline_methods().items()}
    twins = [
        model_method(_untrained(settings, "untrained", model, seed), tau=UNTRAINED_TAU)
        for seed in range(settings.untrained)
    ]
    if twins:
        methods[f"the same network, random weights ({len(twins)} seeds)"] = twins
    return methods


def _untrained(settings: Evaluation, name: str, model: Path, seed: int) -> Path:
    twin = settings.out / name / str(seed)
    twin.parent.mkdir(parents=True, exist_ok=True)
    write_untrained(twin, model, seed=seed)
    return twin


def _named(settings: Evaluation) -> list[NamedRow]:
    """What names are worth, of the model that reads text and of the same network with random weights."""
    choice = settings.samples
    samples = captioned_samples(SEEDS[choice.scenes][: choice.captioned], choice.size)
    models: list[tuple[str, Path, dict[str, Any]]] = [("the model that reads text", settings.text_model, {})]
    if settings.untrained:
        twin = _untrained(settings, "untrained-text", settings.text_model, 0)
        models.append(("the same network, random weights", twin, {"tau": UNTRAINED_TAU}))
    return list(name_rows(models, samples, settings.out / "scored")) if samples else []


def report(rows: Sequence[Row]) -> str:
    """Two tables in Markdown for each set: scores, and by how much those of the first row are higher."""
    parts = []
    for samples in dict.fromkeys(row.samples for row in rows):
        here = [row for row in rows if row.samples == samples]
        columns = list(here[0].scores)
        table = [[row.method, *(number(name, row.scores[name]) for name in columns)] for row in here]
        parts += [f"### {samples}", markdown(["method", *map(heading, columns)], table)]
        ahead = [[row.method, *(signed(name, _less(row.gain[name])) for name in COMPARED)] for row in here[1:]]
        parts += [markdown([f"{here[0].method} ahead of", *map(heading, COMPARED)], ahead)]
    return "\n\n".join(parts)


def _less(gain: Interval) -> Interval:
    return replace(gain, mean=-gain.mean)


def draw(settings: Evaluation) -> None:
    """A picture of each set: image | truth | our segments | Felzenszwalb's."""
    shown = [model_method(settings.model).load()]
    shown += [method.load() for name, method in baseline_methods().items() if name == "Felzenszwalb"]
    for name, samples in chosen(settings.samples).items():
        picked = samples[:: max(1, len(samples) // settings.pictures)][: settings.pictures]
        path = settings.out / f"{name.split(',')[0].split(':')[0].replace(' ', '-')}.png"
        contact_sheet([_strip(sample, shown) for sample in picked], height=192, columns=2).save(path)


def _strip(sample: Sample, methods: Sequence[Segment]) -> list[np.ndarray]:
    image, truth = sample.load()
    return [image, overlay(image, truth), *(overlay(image, segment(image)) for segment in methods)]


def main(settings: Evaluation) -> None:
    """Print the tables and write them, the figures and the pictures into the folder."""
    if LEFT_OUT:
        Console(stderr=True).print(LEFT_OUT, highlight=False)
    torch.set_num_threads(settings.threads)
    rows = list(compare(_methods(settings), settings.samples, settings.out / "scored"))
    text = report(rows)
    named = _named(settings)
    if named:
        heading_of_names = f"### names, on {settings.samples.captioned} captioned scenes ({settings.samples.scenes})"
        text += f"\n\n{heading_of_names}\n\n{names_table(named)}"
    print(text)
    (settings.out / "scores.md").write_text(text + "\n")
    for name, found in (("scores", rows), ("names", named)):
        (settings.out / f"{name}.json").write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")
    if settings.pictures:
        draw(settings)


if __name__ == "__main__":
    main(tyro.cli(Evaluation))
