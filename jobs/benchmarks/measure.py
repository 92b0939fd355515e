"""Measurements of alternating variants, so that load on the machine affects all of them equally."""

from __future__ import annotations

import dataclasses
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
    """The measured times of one case, for several variants that ran in turns.

    Attributes:
        part: The part of `diffseg bench`, such as whole.
        case: The model, size and other conditions, for people.
        seconds: The seconds of each repetition by variant; entries of the same index ran in the same turn.
        baseline: The variant by which the others are divided.
        per: The number of images that one repetition processes.
        steps: The median seconds per image by step of our variant, where steps are measured.
        notes: Other facts by name, such as the number of segments.
    """

    part: str
    case: str
    seconds: Mapping[str, list[float]]
    baseline: str
    per: int = 1
    steps: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def median(self, variant: str) -> float:
        """Return the median seconds per image of a variant."""
        return statistics.median(self.seconds[variant]) / self.per

    def ratio(self, variant: str) -> float:
        """Return the median over all turns of the time of a variant divided by that of the baseline."""
        return statistics.median(self._ratios(variant))

    def spread(self, variant: str) -> tuple[float, float]:
        """Return the smallest and the largest of these ratios."""
        ratios = self._ratios(variant)
        return min(ratios), max(ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, with the medians and ratios."""
        return dataclasses.asdict(self) | {
            "medians": {variant: self.median(variant) for variant in self.seconds},
            "ratios": {variant: self.ratio(variant) for variant in self.seconds},
        }

    def _ratios(self, variant: str) -> list[float]:
        pairs = zip(self.seconds[variant], self.seconds[self.baseline], strict=True)
        return [seconds / baseline for seconds, baseline in pairs]


def alternate(variants: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Run all variants in turns, and measure each.

    A first turn, which is not measured, warms up. Every other turn runs in reverse order.

    Args:
        variants: The functions to measure, by name.
        repetitions: The number of turns that are measured.

    Returns:
        The seconds of each turn, by variant.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for repetition in range(repetitions):
        order = list(variants.items())
        for name, run in order if repetition % 2 == 0 else reversed(order):
            wait_for_devices()
            started = time.perf_counter()
            run()
            wait_for_devices()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def wait_for_devices() -> None:
    """Wait until the GPU has finished, because CUDA calls return before the work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    """Describe what the times depend on: processor, cores, memory, threads, versions, and the GPU if one is used."""
    facts = {
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
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _memory() -> int:
    """Return the memory of this machine in bytes, or 0 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # for example on Windows
        return 0
