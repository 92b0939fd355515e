"""The process in which `fuzz.py` labels: `python fuzz_worker.py SCRATCH`.

It reads lines of JSON with the path of a shard, labels the shard, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from diffseg.segmentation import Segment, Segmentation
from pipeline.label import label_shard
from pipeline.readers.find import find_shards
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

MAX_PIXELS = 2**20  # as in hostile_images.py, which this process does not need
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pickle.find_class")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Constant:
    """A Segmenter with one segment per image, whose confidence is the mean brightness of the image."""

    batch_size = 2

    def prepare(self, image: np.ndarray, prompt: object = None) -> Segmentation:
        """Return the segmentation, where the Segmenter returns a model input."""
        height, width = image.shape[:2]
        mean = float(image.mean()) / 255
        segment = Segment(id=0, area=height * width, bbox=(0, 0, width, height), confidence=mean)
        return Segmentation(labels=np.zeros((height, width), np.uint16), segments=(segment,), confidence=mean)

    def launch_each(self, batches: Iterable[Sequence[Segmentation]], step: Any) -> Iterator[SimpleNamespace]:
        """Yield batches with their results, like the Segmenter."""
        for segmentations in batches:
            yield SimpleNamespace(results=partial(list, segmentations))


def label(path: str, out: Path) -> None:
    """Label the shard at ``path``."""
    (shard,) = find_shards(path, samples_per_shard=2**62)  # all files of a folder in one group
    label_shard(
        shard,
        segmenter=Constant(),  # type: ignore[arg-type]
        settings=LabelSettings(format="parquet,webdataset", max_pixels=MAX_PIXELS),
        metadata={"fingerprint": "f"},
        out=Storage(url=str(out)),
        source=Storage(url="."),
    )


def main(scratch: Path) -> None:
    """Answer lines until the input ends."""
    forbidden: list[str] = []
    inside = (str(scratch / "out"), str(scratch / "tmp"), "/dev/null")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            forbidden.append(f"{event} {arguments}"[:300])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
            if path and not path.startswith(inside):
                forbidden.append(f"open for writing: {path[:300]}")

    sys.addaudithook(audit)
    answer(error="", forbidden=[])
    for line in sys.stdin:
        error = ""
        try:
            label(json.loads(line)["path"], scratch / "out")
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"[:1000]
        answer(error=error, forbidden=forbidden)
        forbidden.clear()


def answer(**fields: Any) -> None:
    """Print one line of JSON, with the peak memory of this process in MB."""
    print(json.dumps({**fields, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
