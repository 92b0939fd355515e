"""One point of part growth, in its own process, so that the peak of memory is that of this point alone.

    python -m jobs.benchmarks.point '{"against": "tokens", "x": 1024}'

This prints {"x": …, "seconds": {step: seconds per image, "total": …}, "peak": bytes, "peaks": {step: bytes}}.

The peaks are of resident memory above the memory that the process held before (null and {} without /proc). They are
measured first, while freed memory still returns to the kernel; otherwise memory that was freed before would hide new
demand. The seconds are measured after that, with `keep_freed_memory` as in a worker. Both use one thread.
"""

from __future__ import annotations

import ctypes
import functools
import io
import json
import sys
import time
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
    """One measurement.

    Attributes:
        warm_up: A small call of the same kind, which runs first.
        work: The measured call.
        images: The number of images that a call labels.
    """

    warm_up: Work
    work: Work
    images: int = 1


def case_of(against: str, x: int) -> Case:
    """Make the measurement of one point.

    Args:
        against: The axis: tokens, batch, segments or pixels.
        x: Tokens of the working grid (a square number), images in the batch, planted regions, or pixels of a JPEG.
    """
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
    """Return a generated scene, uint8 [480, 640, 3], which must not be modified."""
    margin = (WIDTH - HEIGHT) // 2
    return generate_scene(HELD_OUT_SEEDS[0], WIDTH).image[margin : margin + HEIGHT]


def _labelling(backbone: Backbone, resolution: int, batch: int) -> Work:
    """Return a call that labels a batch of scenes."""
    image = _scene()
    segmenter = Segmenter(backbone, settings_of(resolution=resolution), batch_size=batch)
    return lambda step: _label(segmenter, [image] * batch, step)


def _label(segmenter: Segmenter, images: list[np.ndarray], step: Step) -> list[Segmentation]:
    with step("resize"):
        canvases = [segmenter.prepare(image) for image in images]
    pending = segmenter.launch(canvases, step)
    with step("results"):
        results = pending.results()
    return [result for result in results if isinstance(result, Segmentation)]


def _merging(side: int, regions: int) -> Work:
    """Return a call from attention [side², side²] with planted regions to labels of 480 x 640 pixels.

    Every region becomes a segment, apart from those that are too small to contain an anchor: 9 of 128.
    """
    grid = (side, side)
    maps = {grid: torch.from_numpy(planted_attention(regions, [side], heads=1)[side])}
    attention = SelfAttention(maps=maps, layers={grid: 1})

    def work(step: Step) -> None:
        # Overwriting the maps changes nothing here: the aggregate of a single resolution is the map itself.
        scores, _ = scores_of(attention, SegmenterSettings(), thresholds(TAU), step, overwrite=True)
        with step("decide"):
            decide(scores[0], (HEIGHT, WIDTH))

    return work


def _file_to_file(segmenter: Segmenter, pixels: int) -> Work:
    """Return a call from the bytes of a JPEG to the PNG of its mask."""
    jpeg = _jpeg(pixels)

    def work(step: Step) -> None:
        with step("decode"):
            image = decode_image(jpeg)
        result = _label(segmenter, [image], step)[0]
        with step("png"):
            encode_mask(result.labels)

    return work


def _jpeg(pixels: int) -> bytes:
    """Encode the scene at about this number of pixels, 4 : 3.

    Grain is added after the scene was enlarged, because a smooth image would decode too fast.
    """
    width = round((pixels * WIDTH / HEIGHT) ** 0.5)
    height = round(width * HEIGHT / WIDTH)
    image = np.asarray(Image.fromarray(_scene()).resize((width, height), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(0).normal(0, 4, (256, 256, 3)).astype(np.int16)
    grain = np.tile(grain, (-(-height // 256), -(-width // 256), 1))[:height, :width]
    file = io.BytesIO()
    Image.fromarray((grain + image).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


class Memory:
    """A context manager that measures the peak of memory within a step, by the name that it is called with.

    Without /proc it measures nothing.

    Attributes:
        peaks: Peak of resident memory within each step, in bytes above the memory held when this object was made.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._highest = 0
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        if malloc_trim is not None:
            malloc_trim(0)
        self._held = _status("VmRSS") if CLEAR_REFS.exists() else None
        self._since_last()  # discards the peak from before
        self._highest = 0

    @property
    def peak(self) -> int | None:
        """The peak so far in bytes, including the time between steps; None without /proc."""
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
        """Return the peak since the last call, in bytes above the memory held at the start."""
        if self._held is None:
            return 0
        peak = _status("VmHWM") - self._held
        CLEAR_REFS.write_text(RESET_PEAK)
        self._highest = max(peak, self._highest)
        return peak


def _status(field: str) -> int:
    """Return a field of /proc/self/status, in bytes."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))


def measure(case: Case) -> dict[str, Any]:
    """Measure the peaks of one call in bytes, then the seconds per image by step of the median of three calls."""
    with torch.inference_mode():
        case.warm_up(no_step)
        memory = Memory()
        case.work(memory)
        peak = memory.peak
        keep_freed_memory()
        runs = sorted((_time(case) for _ in range(REPETITIONS)), key=lambda run: run["total"])
    return {"seconds": runs[len(runs) // 2], "peak": peak, "peaks": memory.peaks}


def _time(case: Case) -> dict[str, float]:
    """Return the seconds per image of one call, by step and in total."""
    timer, started = StepTimer(), time.perf_counter()
    case.work(timer)
    seconds = timer.seconds | {"total": time.perf_counter() - started}
    return {name: of_step / case.images for name, of_step in seconds.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    point = json.loads(sys.argv[1])
    print(json.dumps({"x": point["x"]} | measure(case_of(point["against"], point["x"]))))
