"""(d): the pipeline with one actor beside a plain loop over the library, on the same photographs."""

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
    """Photographs below a folder, in order. Raises ValueError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise ValueError(f"{folder}: expected JPEG or PNG files below it; there are none")
    return found


def measure_pipeline(photographs: Path, *, repetitions: int) -> Comparison:
    """A folder of images through `diffseg label` with one actor of one thread, and through a loop, in turns.

    Start-up (Ray, the model) is left out of both: a pass of the pipeline lasts from the start of its first shard to the
    end of its last, with reading, PNG, Parquet and commit records; a pass of the loop only makes label maps.
    """
    files = image_files(photographs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained("tiny")
    segmenter(files[0])
    seconds: dict[str, list[float]] = {"loop": [], "pipeline": []}
    for _ in range(repetitions):
        seconds["loop"].append(_loop(segmenter, files))
        seconds["pipeline"].append(_pipeline(photographs))
    torch.set_num_threads(threads)
    case = f"{len(files)} photographs, tiny, one actor, one thread"
    return Comparison(part="pipeline", case=case, seconds=seconds, baseline="loop", per=len(files))


def _loop(segmenter: Segmenter, files: Sequence[Path]) -> float:
    started = time.perf_counter()
    for path in files:
        segmenter(path)
    return time.perf_counter() - started


def _pipeline(photographs: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as out:
        label_run(
            str(photographs),
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
