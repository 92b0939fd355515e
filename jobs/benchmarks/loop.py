"""Part pipeline: `diffseg label` with one actor beside a plain loop over the library, on the same images."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from diffseg import Segmenter
from jobs.benchmarks.measure import Comparison
from pipeline.executor.driver import label_run
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings


def image_files(folder: Path) -> list[Path]:
    """Return the JPEG and PNG files below a folder, sorted. Raises ValueError if there are none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ValueError(f"{folder}: expected JPEG or PNG files below it, found none")
    return files


def measure_pipeline(folder: Path, *, repetitions: int) -> Comparison:
    """Label a folder of images with `diffseg label` (one actor of one thread) and with a loop, in turns.

    The start of Ray and of the model counts for neither. The pipeline is timed from the start of its first shard to the
    end of its last one, which includes reading, PNG, Parquet and commit records. The loop only makes label maps.
    """
    files = image_files(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained("tiny")
    segmenter(files[0])
    seconds: dict[str, list[float]] = {"loop": [], "pipeline": []}
    for _ in range(repetitions):
        seconds["loop"].append(_loop(segmenter, files))
        seconds["pipeline"].append(_pipeline(folder))
    torch.set_num_threads(threads)
    case = f"{len(files)} images, tiny, one actor, one thread"
    return Comparison(part="pipeline", case=case, seconds=seconds, baseline="loop", per=len(files))


def _loop(segmenter: Segmenter, files: Sequence[Path]) -> float:
    """Return the seconds of a loop over the files."""
    started = time.perf_counter()
    for path in files:
        segmenter(path)
    return time.perf_counter() - started


def _pipeline(folder: Path) -> float:
    """Return the seconds from the start of the first shard to the end of the last one."""
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as out:
        label_run(
            str(folder),
            out,
            settings=LabelSettings(),
            worker=WorkerSettings(threads=1),
            run=RunSettings(workers=1),
            source_options={},
            out_options={},
            console=Console(file=io.StringIO()),
        )
        records = [json.loads(path.read_text()) for path in Path(out, "commits").iterdir()]
    return max(record["finished"] for record in records) - min(record["started"] for record in records)
