"""Alternating measurements: what is compared runs in turns, so that a machine's moods strike all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.output.manifest import versions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One case of a part. seconds: {variant: seconds of each repetition}, all variants in the same repetition in turns.

    baseline: the variant that the others are divided by. per: how many images a repetition is of. steps: {variant's
    step: median seconds}. notes: facts found on the way (labels agree, bytes, …).
    """

    part: str
    case: str
    seconds: Mapping[str, list[float]]
    baseline: str
    per: int = 1
    steps: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def median(self, variant: str) -> float:
        """Seconds an image."""
        return statistics.median(self.seconds[variant]) / self.per

    def ratio(self, variant: str) -> float:
        """Median over the repetitions of variant / baseline."""
        pairs = zip(self.seconds[variant], self.seconds[self.baseline], strict=True)
        return statistics.median(own / base for own, base in pairs)

    def spread(self, variant: str) -> tuple[float, float]:
        """Smallest and largest of those ratios."""
        ratios = [a / b for a, b in zip(self.seconds[variant], self.seconds[self.baseline], strict=True)]
        return min(ratios), max(ratios)


def alternate(variants: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each variant in each repetition, after one round to warm up; every other round runs backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for repetition in range(repetitions):
        order = list(variants.items())
        for name, run in order if repetition % 2 == 0 else reversed(order):
            _wait_for_devices()
            started = time.perf_counter()
            run()
            _wait_for_devices()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait_for_devices() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, threads, versions, and the GPU if there is one."""
    found = {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(_memory() / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": versions(),
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if named:
            return named[0]
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not everywhere
        return 0
