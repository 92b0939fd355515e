"""One point of growth in a process of its own, whose peak of memory is that of this point alone.

    python -m jobs.benchmarks.point '{"against": "tokens", "x": 1024}'

prints {"x": …, "seconds": {step: seconds an image, "total": …}, "peak": bytes, "peaks": {step: bytes}}. The peaks are
of resident memory above what the process held before (null and {} where there is no /proc). They are measured first,
while freed memory goes back to the kernel, or what was freed before would hide what is needed now; the seconds after
that, with `keep_freed_memory` as in a worker. Both on one thread.
"""

from __future__ import annotations

import ctypes
import functools
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffseg.attention.maps import SelfAttention
from diffseg.devices import keep_freed_memory
from diffseg.from_attention import PIXELS_PER_TOKEN
from diffseg.images.decode import decode_image
from diffseg.method.decide import decide
from diffseg.method.proposals import scores_of
from diffseg.model.backbone import Backbone, Step, no_step
from diffseg.model.checkpoint import load_checkpoint
from diffseg.segmentation import Segmentation
from diffseg.segmenter import Segmenter
from diffseg.settings import SegmenterSettings, settings_of, thresholds
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, generate_scene
from jobs.benchmarks.planted import planted_attention
from pipeline.output.rows import encode_mask
from pipeline.timing import StepTimer

HEIGHT, WIDTH = 480, 640
TAU = 1.1
REPETITIONS = 3
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc_pid_clear_refs(5)

Work = Callable[[Step], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured, and something small of the same kind that is done first. images: how many a call labels."""

    warm_up: Work
    work: Work
    images: int = 1


def case_of(against: str, x: int) -> Case:
    """tokens: of the working grid, a square number. batch: images. segments: regions planted. pixels: of a JPEG."""
    if against == "tokens":
        side = PIXELS_PER_TOKEN * round(x**0.5)
        backbone = Backbone(load_checkpoint("tiny"))
        return Case(warm_up=_labelling(backbone, backbone.pixel_multiple, 1), work=_labelling(backbone, side, 1))
    if against == "batch":
        backbone = Backbone(load_checkpoint("tiny"))
        return Case(warm_up=_labelling(backbone, 256, 1), work=_labelling(backbone, 256, x), images=x)
    if against == "segments":
        return Case(warm_up=_merging(16, 2), work=_merging(64, x))
    if against == "pixels":
        segmenter = Segmenter(Backbone(load_checkpoint("tiny")), settings_of(resolution=256))
        return Case(warm_up=_file_to_file(segmenter, 10_000), work=_file_to_file(segmenter, x))
    raise ValueError(f"against={against!r}: expected tokens, batch, segments or pixels")


@functools.cache
def _scene() -> np.ndarray:
    """uint8 [480, 640, 3]; read only."""
    margin = (WIDTH - HEIGHT) // 2
    return generate_scene(HELD_OUT_SEEDS[0], WIDTH).image[margin : margin + HEIGHT]


def _labelling(backbone: Backbone, resolution: int, batch: int) -> Work:
    image = _scene()
    segmenter = Segmenter(backbone, settings_of(resolution=resolution), batch_size=batch)
    return lambda step: _labelled(segmenter, [image] * batch, step)


def _labelled(segmenter: Segmenter, images: list[np.ndarray], step: Step) -> list[Segmentation]:
    with step("resize"):
        canvases = [segmenter.prepare(image) for image in images]
    sent = segmenter.launch(canvases, step)
    with step("results"):
        results = sent.results()
    return [result for result in results if isinstance(result, Segmentation)]


def _merging(side: int, regions: int) -> Work:
    """From attention [side², side²] in which regions are planted to labels of 480 x 640 pixels.

    Every region is found, but for the few that are so small that no anchor lies in them: 10 of 128.
    """
    grid = (side, side)
    maps = {grid: torch.from_numpy(planted_attention(regions, [side], heads=1)[side])}
    attention = SelfAttention(maps=maps, layers={grid: 1})

    def work(step: Step) -> None:
        # Written over each time, which changes nothing: of one resolution the aggregate is the map itself.
        scores, _ = scores_of(attention, SegmenterSettings(), thresholds(TAU), step, overwrite=True)
        with step("decide"):
            decide(scores[0], (HEIGHT, WIDTH))

    return work


def _file_to_file(segmenter: Segmenter, pixels: int) -> Work:
    jpeg = _jpeg(pixels)

    def work(step: Step) -> None:
        with step("decode"):
            image = decode_image(jpeg)
        result = _labelled(segmenter, [image], step)[0]
        with step("png"):
            encode_mask(result.labels)

    return work


def _jpeg(pixels: int) -> bytes:
    """The scene at about that many pixels, 4 : 3. Grain is added after it was enlarged, or it would decode too fast."""
    width = round((pixels * WIDTH / HEIGHT) ** 0.5)
    height = round(width * HEIGHT / WIDTH)
    image = np.asarray(Image.fromarray(_scene()).resize((width, height), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(0).normal(0, 4, (256, 256, 3)).astype(np.int16)
    grain = np.tile(grain, (-(-height // 256), -(-width // 256), 1))[:height, :width]
    file = io.BytesIO()
    Image.fromarray((grain + image).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


class Memory:
    """Call it with the name of a step as a context manager. Where there is no /proc, it measures nothing.

    peaks: {step: the most bytes within it above what the process held when this was made}.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._highest = 0
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if malloc_trim is not None:
            malloc_trim(0)
        self._held = _status("VmRSS") if CLEAR_REFS.exists() else None
        self._since_last()  # what the process needed before does not count
        self._highest = 0

    @property
    def peak(self) -> int | None:
        """The most bytes so far, between steps as well."""
        self._since_last()
        return None if self._held is None else self._highest

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._since_last()
        try:
            yield
        finally:
            if self._held is not None:
                self.peaks[name] = max(self._since_last(), self.peaks.get(name, 0))

    def _since_last(self) -> int:
        """The peak since this was last called, in bytes above what was held."""
        if self._held is None:
            return 0
        peak = _status("VmHWM") - self._held
        CLEAR_REFS.write_text(RESET_PEAK)
        self._highest = max(peak, self._highest)
        return peak


def _status(field: str) -> int:
    """Bytes."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))


def measured(case: Case) -> dict[str, Any]:
    """Peaks in bytes of one call, then seconds an image by step of the call that took the median total of three."""
    with torch.inference_mode():
        case.warm_up(no_step)
        memory = Memory()
        case.work(memory)
        peak = memory.peak
        keep_freed_memory()
        runs = sorted((_timed(case) for _ in range(REPETITIONS)), key=lambda run: run["total"])
    return {"seconds": runs[len(runs) // 2], "peak": peak, "peaks": memory.peaks}


def _timed(case: Case) -> dict[str, float]:
    timer = StepTimer()
    with timer("total"):
        case.work(timer)
    return {name: seconds / case.images for name, seconds in timer.seconds.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    point = json.loads(sys.argv[1])
    print(json.dumps({"x": point["x"]} | measured(case_of(point["against"], point["x"]))))
