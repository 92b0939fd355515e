"""Label for an hour without a pause: memory, open files and threads of the processes must stay flat.

    python tests/end_to_end/proofs/soak.py --minutes 60 --folder soak

Every ten seconds a sample goes to FOLDER/samples.jsonl. With --only-report, the same command only fits and draws them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from runs import environment

from diffseg.tiny.scenes.scenes import generate_scene
from pipeline.readers.pack import pack_images

EVERY_SECONDS = 10.0
SETTLING = 0.2
"""Fraction of the time at the start that the fit leaves out, while models load and caches and heaps grow."""
WINDOW_MINUTES = 2.0
"""The line is fitted through the minimum of each window, which does not depend on the images in flight."""
MAX_GROWTH = {"rss_mb": 30.0, "files": 5.0, "threads": 3.0}
"""Growth per hour of the fitted line above which the soak fails."""
IMAGES, PER_SHARD = 48, 8
COLOURS = {"actor": (31, 119, 180), "driver": (214, 93, 14)}


def make_source(folder: Path, minutes: float) -> Path:
    """Make more shards than the time allows: links to six tars of scenes of many sizes and a few broken files."""
    images, tars, source = folder / "images", folder / "tars", folder / "source"
    if source.exists():
        return source
    images.mkdir(parents=True)
    for seed in range(IMAGES):
        side = 96 + 37 * (seed % 20)
        Image.fromarray(generate_scene(seed, side).image).save(images / f"{seed:03d}.{'png' if seed % 2 else 'jpg'}")
        if seed % 16 == 0:
            (images / f"{seed:03d}-broken.jpg").write_bytes(b"\xff\xd8 no image")
    pack_images(str(images), str(tars), samples_per_shard=PER_SHARD)
    whole = sorted(tars.iterdir())
    source.mkdir()
    for number in range(int(minutes * 60) + 60):
        os.link(whole[number % len(whole)], source / f"{number:05d}.tar")
    return source


def watched_processes(driver: psutil.Process) -> dict[str, psutil.Process]:
    """Return the driver and, once it runs, its only actor."""
    watched = {"driver": driver}
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[0].startswith("ray::LabelWorker"):
                watched["actor"] = process
    return watched


def soak(source: Path, folder: Path, minutes: float) -> None:
    """Run the command, and take samples until the time is over."""
    line = [sys.executable, "-m", "jobs.label", str(source), str(folder / "out"), "--address", "local"]
    # A shell that runs this in the background makes it, and so the driver, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line += ["--workers", "1", "--device", "cpu", "--format", "parquet,webdataset", "--allowed-failures", "1"]
    with (folder / "log").open("wb") as log, (folder / "samples.jsonl").open("a") as samples:
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment(), start_new_session=True)
        driver, started = psutil.Process(process.pid), time.time()
        try:
            while time.time() - started < minutes * 60 and process.poll() is None:
                for name, watched in watched_processes(driver).items():
                    with contextlib.suppress(psutil.Error):
                        samples.write(
                            json.dumps({"minute": (time.time() - started) / 60, **sample(name, watched)}) + "\n"
                        )
                samples.flush()
                time.sleep(EVERY_SECONDS)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def sample(name: str, process: psutil.Process) -> dict[str, Any]:
    with process.oneshot():
        return {
            "process": name,
            "pid": process.pid,
            "rss_mb": process.memory_info().rss / 2**20,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }


def report(folder: Path) -> bool:
    """Print a table of the minima and slopes, draw the memory, and return True if everything is flat."""
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    end = max(sample["minute"] for sample in samples)
    is_flat = True
    images = sum(json.loads(path.read_text())["rows"] for path in (folder / "out" / "commits").iterdir())
    print(f"{end:.0f} minutes, {images} samples labelled\n")
    print("| process | value | minimum, settled | minimum, at the end | maximum | slope of the minimum, per hour |")
    print("|---|---|---|---|---|---|")
    for name in COLOURS:
        of_process = [sample for sample in samples if sample["process"] == name]
        assert len({sample["pid"] for sample in of_process}) == 1, f"the {name} was replaced"
        for value, limit in MAX_GROWTH.items():
            minima: dict[int, float] = {}
            for sample in of_process:
                window = int(sample["minute"] // WINDOW_MINUTES)
                minima[window] = min(sample[value], minima.get(window, sample[value]))
            settled = {window: least for window, least in minima.items() if window * WINDOW_MINUTES >= SETTLING * end}
            minutes, values = WINDOW_MINUTES * np.array(list(settled)), np.array(list(settled.values()))
            slope = 60 * np.polyfit(minutes, values, 1)[0]
            is_flat &= abs(slope) <= limit
            largest = max(sample[value] for sample in of_process)
            print(f"| {name} | {value} | {values[0]:.0f} | {values[-1]:.0f} | {largest:.0f} | {slope:+.1f} |")
    draw(samples, end, folder / "soak.png")
    return bool(is_flat)


def draw(samples: list[dict[str, Any]], end: float, path: Path) -> None:
    """Draw the resident memory over time, from zero."""
    width, height, margin = 900, 320, 50
    top = 1.1 * max(sample["rss_mb"] for sample in samples)
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)

    def place(minute: float, value: float) -> tuple[float, float]:
        return margin + minute / end * (width - 2 * margin), height - margin - value / top * (height - 2 * margin)

    step = 250
    for value in range(0, int(top), step):
        pen.line([place(0, value), place(end, value)], fill=(225, 225, 225))
        pen.text((5, place(0, value)[1] - 6), f"{value} MB", fill="black")
    for minute in np.linspace(0, end, 7):
        pen.text((place(minute, 0)[0] - 10, height - margin + 8), f"{minute:.0f} min", fill="black")
    for name, colour in COLOURS.items():
        points = [place(sample["minute"], sample["rss_mb"]) for sample in samples if sample["process"] == name]
        pen.line(points, fill=colour, width=2)
        pen.text((points[-1][0] + 5, points[-1][1] - 6), name, fill=colour)
    image.save(path)


def main() -> int:
    """Soak, report, and return exit code 0 if everything stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to label")
    parser.add_argument("--folder", type=Path, default=Path("soak"), help="folder for the input and the samples")
    parser.add_argument("--only-report", action="store_true", help="only report on the samples of an earlier soak")
    options = parser.parse_args()
    if not options.only_report:
        soak(make_source(options.folder, options.minutes), options.folder, options.minutes)
    return 0 if report(options.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
