"""Find the level of a run that scores best on a few images with ground truth, and print how to recut the run to it.

OUT must have been labelled with --levels. With --classes, OUT needs names instead, and the name score below which a
segment should be background is found. Ten to fifty images with ground truth suffice; TRUTH is as for `diffseg
evaluate`.

Exit codes:
  0: a level or a threshold is found.
  1: some ground truth could not be used.
  2: wrong usage, or too few images with ground truth.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.table import Table

from diffseg.levels import Cut
from diffseg.scoring.bootstrap import Interval
from diffseg.scoring.view import Crop, View
from diffseg.segmentation import BACKGROUND
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.evaluate import parse_classes, parse_ids
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.run_flags import ParallelFlags, RunFlags
from pipeline.evaluation.evaluate import Evaluation, evaluate, make_tasks
from pipeline.evaluation.ground_truth import find_ground_truth
from pipeline.evaluation.layouts import LayoutName
from pipeline.evaluation.pairing import pair_rows, read_run_rows
from pipeline.evaluation.score import EvaluationContext
from pipeline.evaluation.tune import Tuning, candidate_cuts, tune
from pipeline.evaluation.tune_names import tune_threshold
from pipeline.output.levels import RunCut
from pipeline.output.manifest import Manifest
from pipeline.readers.names import NameSettings
from pipeline.storage import SourceError, Storage

FEWEST_IMAGES = 5
"""Below this number, leaving one image out says nothing."""
CANDIDATES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TuneCommand(ParallelFlags, RunFlags):
    """The flags of `diffseg tune`."""

    truth: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRUTH")]
    """Ground truth: a folder, glob or URL, a panoptic JSON file, or the OUT of another run."""
    score: Literal["miou", "covering", "accuracy", "best_iou", "boundary_f"] = "miou"
    """Score to maximise: of each image, with segments matched to classes where the score needs it."""
    classes: str | None = None
    """Names of the ids in TRUTH, as for `diffseg evaluate`, with the id of "background". With it, the threshold of
    names is found that gives the highest mIoU over the images, without matching."""
    layout: LayoutName | None = None
    """Layout of TRUTH; default: the layout that its paths suggest, else plain label maps (labels)."""
    truth_field: str | None = None
    """Extension (tar, such as seg.png) or column (Parquet) of the ground truth, if a sample has several."""
    ignore: str | None = None
    """Ids in TRUTH that are not scored, separated by commas; default: those of the layout; "" for none."""
    crop: Crop = "none"
    """centre: score only the centre square, as DiffSeg's paper does."""
    size: int | None = None
    """Score at this length of the shorter side in pixels; default: the size of the image."""


def _tune(command: TuneCommand) -> int:
    out, manifest = command.open()
    classes = parse_classes(command.classes, command.store())
    if classes:
        if BACKGROUND not in classes:
            raise ValueError(
                f'--classes: expected the id of "{BACKGROUND}" in TRUTH too, such as {{"{BACKGROUND}": 0, …}}'
            )
        if not NameSettings(**manifest.settings["naming"]):
            raise SourceError(f"{out.redacted}: its segments have no names, so they have no threshold")
        return _tune_names(command, classes, out, manifest)
    cuts = candidate_cuts(manifest, out.redacted)
    evaluation = _scored(command, out, manifest, levels=cuts)
    scores = np.array(
        [[image.levels[str(cut.cut)].values[command.score] for cut in cuts] for image in evaluation.scored]
    ).reshape(-1, len(cuts))
    scores = scores[~np.isnan(scores).any(axis=1)]
    _check_enough(out, len(scores))
    tuning = tune(scores)
    recut = _recut_command(command.out, cuts[tuning.best].cut)
    if command.json:
        print_json(_facts(command, cuts, tuning, len(scores), recut))
    else:
        title = f"{command.score} of {len(scores)} images, by level"
        _print(Figures(title, "level", [str(cut.cut) for cut in cuts], tuning.means, tuning.gain, tuning.best), recut)
    return SOME_FAILED if evaluation.problems else OK


def _scored(
    command: TuneCommand,
    out: Storage,
    manifest: Manifest,
    *,
    levels: tuple[RunCut, ...] = (),
    classes: Mapping[str, int] = MappingProxyType({}),
) -> Evaluation:
    """Score the rows that have ground truth, at some levels or with their names."""
    ground_truth = find_ground_truth(
        command.truth,
        command.store(),
        layout=command.layout,
        field=command.truth_field,
        ignore=parse_ids(command.ignore),
    )
    pairing = pair_rows(read_run_rows(out, manifest), ground_truth)
    baseline_images = len(pairing.pairs) if levels else 0
    tasks = make_tasks(pairing, ground_truth, sources={}, baseline_images=baseline_images)
    context = EvaluationContext(
        out=out,
        ground_truth=dataclasses.replace(ground_truth, locations={}),
        view=View(crop=command.crop, size=command.size),
        image_field=None,
        classes=classes,
        has_names=bool(classes),
        levels=levels,
    )
    with progress_bar("scoring label shards", len(tasks)) as advance:
        return evaluate(context, tasks, processes=command.process_count, address=command.ray_address, on_shard=advance)


def _check_enough(out: Storage, images: int) -> None:
    """Raise SourceError if too few images have ground truth."""
    if images < FEWEST_IMAGES:
        raise SourceError(
            f"{out.redacted}: only {images} of its images have ground truth in TRUTH; tuning needs at least "
            f"{FEWEST_IMAGES}, and 10 to 50 are better"
        )


def _tune_names(command: TuneCommand, classes: Mapping[str, int], out: Storage, manifest: Manifest) -> int:
    """Find the threshold of names, and print it."""
    evaluation = _scored(command, out, manifest, classes=classes)
    images = [image for image in evaluation.scored if image.named is not None]
    _check_enough(out, len(images))
    tuning = tune_threshold(images, classes)
    best = tuning.thresholds[tuning.best]
    recut = f"diffseg recut {shlex.quote(command.out)} NEW --background-below {best:g}" if best else ""
    if command.json:
        print_json(
            {
                "score": "miou of names",
                "images": len(images),
                "thresholds": {
                    f"{threshold:g}": dataclasses.asdict(mean)
                    for threshold, mean in zip(tuning.thresholds, tuning.means, strict=True)
                },
                "best": best,
                "gain": dataclasses.asdict(tuning.gain),
                "command": recut,
            }
        )
    else:
        named = [f"{threshold:g}" for threshold in tuning.thresholds]
        title = f"mIoU of names over {len(images)} images, by --background-below"
        _print(Figures(title, "background below", named, tuning.means, tuning.gain, tuning.best), recut)
    return SOME_FAILED if evaluation.problems else OK


def _recut_command(out: str, cut: Cut) -> str:
    """Return the command that makes the labels of a cut."""
    level = "--stable" if cut.stable else f"--tau {cut.tau:g}" if cut.tau is not None else f"--segments {cut.segments}"
    return f"diffseg recut {shlex.quote(out)} NEW {level}"


def _facts(command: TuneCommand, cuts: tuple[RunCut, ...], tuning: Tuning, images: int, recut: str) -> dict[str, Any]:
    return {
        "score": command.score,
        "images": images,
        "levels": {str(cut.cut): dataclasses.asdict(mean) for cut, mean in zip(cuts, tuning.means, strict=True)},
        "best": str(cuts[tuning.best].cut),
        "gain": dataclasses.asdict(tuning.gain),
        "fitted_gain": tuning.fitted_gain,
        "command": recut,
    }


class Figures(NamedTuple):
    """What `_print` shows: the score of each candidate, of which the first leaves the run as it is."""

    title: str
    column: str
    candidates: Sequence[str]
    means: Sequence[Interval]
    gain: Interval
    best: int


def _print(figures: Figures, recut: str) -> None:
    console = CleanConsole()
    table = Table(title=figures.title, title_justify="left")
    table.add_column(figures.column, no_wrap=True)
    table.add_column("score", justify="right")
    order = sorted(range(len(figures.means)), key=lambda index: -figures.means[index].mean)[:CANDIDATES_SHOWN]
    for index in sorted({0, *order}, key=lambda index: -figures.means[index].mean):
        name = f"{figures.candidates[index]} (of the run)" if index == 0 else figures.candidates[index]
        table.add_row(name, f"{figures.means[index].mean:.3f} ±{figures.means[index].half_width:.3f}")
    console.print(table)
    gain = figures.gain
    line = f"expected gain over the run as it is: {gain.mean:+.3f} ±{gain.half_width:.3f} (each image left out once)"
    if gain.mean <= gain.half_width:
        line += "; this is not beyond its 95 % interval, so the run as it is may be as good"
    print_line(console, line)
    print_line(console, recut or "the run is best as it is")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg tune` and return its exit code."""
    command = parsed(TuneCommand, argv, "tune", __doc__)
    return guarded(lambda: _tune(command))


if __name__ == "__main__":
    sys.exit(main())
