"""Cuts of the rows of a run with levels (`diffseg label --levels`): other label maps, without a model.

The columns `mask`, `segments` and `confidence` of a row hold the label map at the run's threshold, as in every run.
Three more columns hold its levels:

* `leaf_mask`: PNG with a value for each square cell of ⌈longer side / 160⌉ pixels, the number of its leaf within the
  segment at the middle of the cell. The largest leaf of a segment has number 0.
* `leaves`: for each leaf, its segment and its confidence, in the order of the segments. Leaf numbers count from the
  first leaf of the segment.
* `merges`: the nodes a and b that merge, the height at which they do, in the unit of the run's distance (nats for
  `kl`), and the confidence of the union. Leaves are the nodes 0 … K−1, and merge i makes the node K + i. Heights never
  fall.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from diffseg.levels import Cut, cell_size, cut_again, groups_after, merges_of
from diffseg.segmentation import Levels, Segment, Segmentation
from pipeline.output.manifest import Manifest
from pipeline.output.rows import LEVEL_FIELDS, decode_mask, encode_mask, float32, segment_values
from pipeline.storage import SourceError

LEVEL_COLUMNS = tuple(field.name for field in LEVEL_FIELDS)
CUT_COLUMNS = ("mask", "segments", "confidence", "n_segments")
"""Columns that differ between the cuts of a row."""


@dataclass(frozen=True, kw_only=True)
class RunCut:
    """A cut of the rows of a certain run.

    Attributes:
        cut: The cut.
        threshold: The cut's threshold in the unit of the heights; 0 if it has none.
        names: The run's vocabulary.
    """

    cut: Cut
    threshold: float
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, cut: Cut, manifest: Manifest, out: str) -> RunCut:
        """Return a cut for the rows of a run.

        Args:
            cut: The cut.
            manifest: run.json of the run.
            out: OUT without secrets, for the message.

        Raises:
            SourceError: The run has no levels.
        """
        if not has_levels(manifest):
            raise SourceError(f"{out}: its rows have no levels; label the images with --levels, and then cut again")
        tau = 0.0 if cut.tau is None else cut.tau
        distance = manifest.settings.get("method", {}).get("distance", "kl")
        if cut.tau is not None and distance != "kl":  # the imports take seconds
            from diffseg.method.calibration import calibrated_threshold

            tau = calibrated_threshold(tau, distance)
        return cls(cut=cut, threshold=tau, names=tuple(manifest.settings.get("naming", {}).get("names", ())))

    def columns(self, columns: Sequence[str]) -> list[str]:
        """Return the columns that must be read to get these columns of a cut."""
        if not set(columns) & set(CUT_COLUMNS):
            return list(columns)
        return sorted({*columns, "status", "mask", "segments", "n_segments", *LEVEL_COLUMNS})

    def rows(self, rows: Iterator[dict[str, Any]], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield these columns of the cuts of rows."""
        changes = bool(set(columns) & set(CUT_COLUMNS))
        for row in rows:
            if changes and row["status"] == "ok":
                row = row | cut_values(row, self)
            yield {name: row[name] for name in columns}


def curve_cuts(manifest: Manifest, out: str, *, steps: int = 2) -> tuple[RunCut, ...]:
    """Return the cuts of a curve: thresholds from half to four times that of the run, and the choice per image.

    Args:
        manifest: run.json of a run with levels.
        out: OUT without secrets.
        steps: Number of equal steps from a threshold to its double.
    """
    tau = run_threshold(manifest)
    taus = [float(f"{tau * 2 ** (step / steps):.3g}") for step in range(-steps, 2 * steps + 1)]
    taus[steps] = tau
    cuts = [*(Cut(tau=value) for value in taus), Cut(stable=True)]
    return tuple(RunCut.of(cut, manifest, out) for cut in cuts)


def has_levels(manifest: Manifest) -> bool:
    """Return whether the rows of a run have levels."""
    return bool(manifest.settings.get("levels", False))


def run_threshold(manifest: Manifest) -> float:
    """Return the threshold of the run's label maps, in nats: that of the last merging round."""
    return float(manifest.resolved["tau"][-1])


def stored_levels(row: Mapping[str, Any]) -> Levels:
    """Return the levels of a row with a label map.

    Raises:
        SourceError: The columns do not fit each other.
    """
    with Image.open(io.BytesIO(row["leaf_mask"]), formats=["PNG"]) as image:
        numbers = np.asarray(image)
    leaves, merges = row["leaves"], row["merges"]
    if numbers.dtype != np.uint8 or numbers.ndim != 2 or len(merges) != len(leaves) - 1:
        raise SourceError(f"its {len(leaves)} leaves do not fit its {len(merges)} merges and its leaf_mask")
    return Levels(
        numbers=numbers,
        segment_of_leaf=np.array([leaf["segment"] for leaf in leaves], np.int32),
        leaf_confidences=np.array([leaf["confidence"] for leaf in leaves], np.float32),
        pairs=np.array([(merge["a"], merge["b"]) for merge in merges], np.int32).reshape(-1, 2),
        heights=np.array([merge["height"] for merge in merges], np.float32),
        confidences=np.array([merge["confidence"] for merge in merges], np.float32),
    )


def cut_labels(row: Mapping[str, Any], run_cut: RunCut, levels: Levels | None = None) -> Segmentation:
    """Return the label map of a row at a cut; `levels` are those of the row, if they are known."""
    levels = stored_levels(row) if levels is None else levels
    labels = decode_mask(row["mask"])
    height, width = labels.shape
    cell = cell_size(height, width)
    if levels.numbers.shape != (-(-height // cell), -(-width // cell)):
        raise SourceError(f"its leaf_mask of {levels.numbers.shape} cells does not fit its mask of {labels.shape}")
    segments = [
        Segment(
            id=segment["id"],
            area=segment["area"],
            bbox=tuple(segment["bbox"]),
            confidence=segment["confidence"],
            name=segment["name"],
            name_score=segment["name_score"],
        )
        for segment in row["segments"]
    ]
    return cut_again(levels, labels, segments, run_cut.cut, run_cut.threshold)


def cut_values(row: Mapping[str, Any], run_cut: RunCut) -> dict[str, Any]:
    """Return the `CUT_COLUMNS` of a row with a label map at a cut; at the run's own level they are those of the row."""
    levels = stored_levels(row)
    if not run_cut.cut.stable:
        groups, _ = groups_after(levels, merges_of(levels, run_cut.cut, run_cut.threshold))
        if np.array_equal(groups, levels.segment_of_leaf):
            return {name: row[name] for name in CUT_COLUMNS if name in row}
    made = cut_labels(row, run_cut, levels)
    return {
        "mask": encode_mask(made.labels),
        "segments": list(segment_values(made.segments, run_cut.names)),
        "confidence": float32(made.confidence),
        "n_segments": len(made.segments),
    }
