"""Score the embedded models and the baselines: `python -m diffseg.tiny.evaluation.evaluate`.

Training, tuning and this evaluation use three disjoint ranges of scene seeds (`diffseg.tiny.scenes.scenes`), and
nothing is ever chosen on photographs. Scores are cached, so the command can be stopped and resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console

from diffseg.component_settings import Vote
from diffseg.drawing.overlay import contact_sheet, overlay
from diffseg.scoring.baselines import LEFT_OUT
from diffseg.scoring.bootstrap import Interval
from diffseg.tiny.evaluation.names import NamingRow, names_table, score_naming
from diffseg.tiny.evaluation.samples import SEEDS, Sample, SampleChoice, captioned_samples, sample_sets
from diffseg.tiny.evaluation.scoring import (
    Method,
    ScoreRow,
    SegmentFunction,
    baseline_methods,
    compare_methods,
    model_method,
)
from diffseg.tiny.evaluation.tables import column_heading, format_difference, format_mean, markdown
from diffseg.tiny.evaluation.untrained import UNTRAINED_TAU, write_untrained
from diffseg.tiny.recipe.export import CHECKPOINT
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT

__all__ = ["Evaluation", "report"]

COMPARED = ("covering", "miou", "best_iou", "boundary_f", "accuracy")
"""Scores in which the embedded model is compared with the other methods."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Score the embedded models and the baselines, with 95 % intervals of the scores and of their paired differences.

    Attributes:
        samples: Images to score on.
        model: Folder in the layout of the embedded checkpoint.
        text_model: Folder of a text model. Its masks are scored like those of the other methods, and its names are
            scored on captioned scenes.
        votes: Votes whose names are scored.
        prompts: What conditions the passes whose names are scored, see the flag --prompt of `diffseg label`.
        untrained: Number of random initialisations of the same network over which the scores of that baseline are
            averaged.
        pictures: Images of each set to draw, with their ground truth, the labels of the model and those of
            Felzenszwalb's method.
        threads: Threads of torch.
        out: Folder for cached scores, scores.md, scores.json, names.json and the pictures.
    """

    samples: tyro.conf.OmitArgPrefixes[SampleChoice] = field(default_factory=lambda: SampleChoice(captioned=60))
    model: Path = CHECKPOINT
    text_model: Path = TEXT_CHECKPOINT
    votes: tuple[Vote, ...] = ("share",)
    prompts: tuple[Literal["names", "empty"], ...] = ("names",)
    untrained: int = 3
    pictures: int = 12
    threads: int = 1
    out: Path = Path("tiny-eval")


def _methods(settings: Evaluation) -> Mapping[str, Sequence[Method]]:
    """Return, by the names in the table, the variants over which the scores are averaged."""
    model = settings.model
    methods = {
        "embedded model": [model_method(model)],
        "the same, assign=peak as in the paper": [model_method(model, assign="peak")],
        "text model, without names": [model_method(settings.text_model)],
    }
    methods |= {name: [method] for name, method in baseline_methods().items()}
    untrained = [
        model_method(_write_untrained(settings, "untrained", model, seed), tau=UNTRAINED_TAU)
        for seed in range(settings.untrained)
    ]
    if untrained:
        methods[f"the same network, random weights ({len(untrained)} seeds)"] = untrained
    return methods


def _write_untrained(settings: Evaluation, name: str, model: Path, seed: int) -> Path:
    """Write the checkpoint of `model` with random weights into the output folder, and return its folder."""
    folder = settings.out / name / str(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_untrained(folder, model, seed=seed)
    return folder


def _score_names(settings: Evaluation) -> list[NamingRow]:
    """Score the names that the text model and the same network with random weights give to captioned scenes."""
    choice = settings.samples
    samples = captioned_samples(SEEDS[choice.scenes][: choice.captioned], choice.size)
    models: list[tuple[str, Path, dict[str, Any]]] = []
    for prompt, vote in product(settings.prompts, settings.votes):
        changed = {"vote": vote, "prompt": prompt}
        title = ", ".join(["text model", *(f"{name} {value}" for name, value in changed.items())])
        models.append((title, settings.text_model, changed))
    if settings.untrained:
        untrained = _write_untrained(settings, "untrained-text", settings.text_model, 0)
        models.append(("the same network, random weights", untrained, {"tau": UNTRAINED_TAU}))
    return list(score_naming(models, samples, settings.out / "scored")) if samples else []


def report(rows: Sequence[ScoreRow]) -> str:
    """Return two Markdown tables for each set: scores, and by how much those of the first method are higher."""
    parts = []
    for samples in dict.fromkeys(row.samples for row in rows):
        first, *others = rows_of_set = [row for row in rows if row.samples == samples]
        columns = list(first.scores)
        table = [[row.method, *(format_mean(name, row.scores[name]) for name in columns)] for row in rows_of_set]
        parts += [f"### {samples}", markdown(["method", *map(column_heading, columns)], table)]
        leads = [
            [row.method, *(format_difference(name, _negate(row.gain[name])) for name in COMPARED)] for row in others
        ]
        parts += [markdown([f"{first.method} ahead of", *map(column_heading, COMPARED)], leads)]
    return "\n\n".join(parts)


def _negate(difference: Interval) -> Interval:
    return replace(difference, mean=-difference.mean)


def draw(settings: Evaluation) -> None:
    """Write a picture for each set: image | ground truth | segments of the model | those of Felzenszwalb's method."""
    methods = [model_method(settings.model).load()]
    methods += [method.load() for name, method in baseline_methods().items() if name == "Felzenszwalb"]
    for name, samples in sample_sets(settings.samples).items():
        drawn = samples[:: max(1, len(samples) // settings.pictures)][: settings.pictures]
        path = settings.out / f"{name.split(',')[0].split(':')[0].replace(' ', '-')}.png"
        contact_sheet([_strip(sample, methods) for sample in drawn], height=192, columns=2).save(path)


def _strip(sample: Sample, methods: Sequence[SegmentFunction]) -> list[np.ndarray]:
    """Return the images of one sample in a picture, uint8 [H, W, 3] each."""
    image, ground_truth = sample.load()
    return [image, overlay(image, ground_truth), *(overlay(image, segment(image)) for segment in methods)]


def main(settings: Evaluation) -> None:
    """Print the tables, and write them, the scores and the pictures into the folder."""
    if LEFT_OUT:
        Console(stderr=True).print(LEFT_OUT, highlight=False)
    torch.set_num_threads(settings.threads)
    rows = list(compare_methods(_methods(settings), settings.samples, settings.out / "scored"))
    text = report(rows)
    naming_rows = _score_names(settings)
    if naming_rows:
        title = f"### names, on {settings.samples.captioned} captioned scenes ({settings.samples.scenes})"
        text += f"\n\n{title}\n\n{names_table(naming_rows)}"
    print(text)
    (settings.out / "scores.md").write_text(text + "\n")
    (settings.out / "scores.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    (settings.out / "names.json").write_text(json.dumps([asdict(row) for row in naming_rows], indent=2) + "\n")
    if settings.pictures:
        draw(settings)


if __name__ == "__main__":
    main(tyro.cli(Evaluation))
