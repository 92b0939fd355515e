"""Find the level of a run that scores best on a few images with ground truth, and print how to recut the run to it.

OUT must have been labelled with --levels. Ten to fifty images with ground truth suffice; TRUTH is as for `diffseg
evaluate`.

Exit codes:
  0: a level is found.
  1: some ground truth could not be used.
  2: wrong usage, or too few images with ground truth.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table

from diffseg.levels import Cut
from diffseg.scoring.view import Crop, View
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.evaluate import parse_ids
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.run_flags import ParallelFlags, RunFlags
from pipeline.evaluation.evaluate import evaluate, make_tasks
from pipeline.evaluation.ground_truth import find_ground_truth
from pipeline.evaluation.layouts import LayoutName
from pipeline.evaluation.pairing import pair_rows, read_run_rows
from pipeline.evaluation.score import EvaluationContext
from pipeline.evaluation.tune import Tuning, candidate_cuts, tune
from pipeline.output.levels import RunCut
from pipeline.storage import SourceError

FEWEST_IMAGES = 5
"""Below this number, leaving one image out says nothing."""
CUTS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TuneCommand(ParallelFlags, RunFlags):
    """The flags of `diffseg tune`."""

    truth: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TRUTH")]
    """Ground truth: a folder, glob or URL, a panoptic JSON file, or the OUT of another run."""
    score: Literal["miou", "covering", "accuracy", "best_iou", "boundary_f"] = "miou"
    """Score to maximise: of each image, with segments matched to classes where the score needs it."""
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
    cuts = candidate_cuts(manifest, out.redacted)
    ignore = parse_ids(command.ignore)
    ground_truth = find_ground_truth(
        command.truth, command.store(), layout=command.layout, field=command.truth_field, ignore=ignore
    )
    pairing = pair_rows(read_run_rows(out, manifest), ground_truth)
    tasks = make_tasks(pairing, ground_truth, sources={}, baseline_images=len(pairing.pairs))
    context = EvaluationContext(
        out=out,
        ground_truth=dataclasses.replace(ground_truth, locations={}),
        view=View(crop=command.crop, size=command.size),
        image_field=None,
        levels=cuts,
    )
    with progress_bar("scoring label shards", len(tasks)) as advance:
        evaluation = evaluate(
            context, tasks, processes=command.process_count, address=command.ray_address, on_shard=advance
        )
    scores = np.array(
        [[image.levels[str(cut.cut)].values[command.score] for cut in cuts] for image in evaluation.scored]
    ).reshape(-1, len(cuts))
    scores = scores[~np.isnan(scores).any(axis=1)]
    if len(scores) < FEWEST_IMAGES:
        raise SourceError(
            f"{out.redacted}: only {len(scores)} of its images have ground truth in TRUTH; tuning needs at least "
            f"{FEWEST_IMAGES}, and 10 to 50 are better"
        )
    tuning = tune(scores)
    recut = _recut_command(command.out, cuts[tuning.best].cut)
    if command.json:
        print_json(_facts(command, cuts, tuning, len(scores), recut))
    else:
        _print(command, cuts, tuning, len(scores), recut)
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


def _print(command: TuneCommand, cuts: tuple[RunCut, ...], tuning: Tuning, images: int, recut: str) -> None:
    console = CleanConsole()
    table = Table(title=f"{command.score} of {images} images, by level", title_justify="left")
    table.add_column("level", no_wrap=True)
    table.add_column(command.score, justify="right")
    order = sorted(range(len(cuts)), key=lambda index: -tuning.means[index].mean)[:CUTS_SHOWN]
    for index in sorted({0, *order}, key=lambda index: -tuning.means[index].mean):
        name = f"{cuts[index].cut} (of the run)" if index == 0 else str(cuts[index].cut)
        table.add_row(name, f"{tuning.means[index].mean:.3f} ±{tuning.means[index].half_width:.3f}")
    console.print(table)
    gain = tuning.gain
    line = f"expected gain over the run's own level: {gain.mean:+.3f} ±{gain.half_width:.3f} (each image left out once)"
    if gain.mean <= gain.half_width:
        line += "; this is not beyond its 95 % interval, so the run's own level may be as good"
    print_line(console, line)
    print_line(console, recut)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg tune` and return its exit code."""
    command = parsed(TuneCommand, argv, "tune", __doc__)
    return guarded(lambda: _tune(command))


if __name__ == "__main__":
    sys.exit(main())
