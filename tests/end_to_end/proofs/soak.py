"""Label for an hour without a pause and watch the processes: memory, open files and threads must stay flat.

    python tests/end_to_end/proofs/soak.py --minutes 60 --folder soak

Samples go to FOLDER/samples.jsonl every ten seconds; the same command with --only-report fits and draws them again.
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
"""Share of the time at the start that the fit leaves out: models load, caches and heaps find their size."""
WINDOW_MINUTES = 2.0
"""The fit is through the least of each: what a process holds at all times, without the images that are just in hand."""
MOST_GROWTH = {"rss_mb": 30.0, "files": 5.0, "threads": 3.0}
"""An hour, by the fitted line, above which the soak fails."""
IMAGES, EACH = 48, 8
COLOURS = {"actor": (31, 119, 180), "driver": (214, 93, 14)}


def make_source(folder: Path, minutes: float) -> Path:
    """More shards than the time can take, all links to six tars of scenes of many sizes and a few broken files."""
    images, tars, source = folder / "images", folder / "tars", folder / "source"
    if source.exists():
        return source
    images.mkdir(parents=True)
    for seed in range(IMAGES):
        side = 96 + 37 * (seed % 20)
        Image.fromarray(generate_scene(seed, side).image).save(images / f"{seed:03d}.{'png' if seed % 2 else 'jpg'}")
        if seed % 16 == 0:
            (images / f"{seed:03d}-broken.jpg").write_bytes(b"\xff\xd8 no image")
    pack_images(str(images), str(tars), samples_per_shard=EACH)
    whole = sorted(tars.iterdir())
    source.mkdir()
    for number in range(int(minutes * 60) + 60):
        os.link(whole[number % len(whole)], source / f"{number:05d}.tar")
    return source


def watched(driver: psutil.Process) -> dict[str, psutil.Process]:
    """The driver and its one actor, once that is there."""
    found = {"driver": driver}
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[0].startswith("ray::LabelWorker"):
                found["actor"] = process
    return found


def soak(source: Path, folder: Path, minutes: float) -> None:
    """Run the command and take samples until the time is over."""
    line = [sys.executable, "-m", "jobs.label", str(source), str(folder / "out"), "--address", "local"]
    # A shell that runs this in the background has it, and so the driver, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line += ["--workers", "1", "--device", "cpu", "--format", "parquet,webdataset", "--allowed-failures", "1"]
    with (folder / "log").open("wb") as log, (folder / "samples.jsonl").open("a") as samples:
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment(), start_new_session=True)
        driver, started = psutil.Process(process.pid), time.time()
        try:
            while time.time() - started < minutes * 60 and process.poll() is None:
                for name, one in watched(driver).items():
                    with contextlib.suppress(psutil.Error):
                        samples.write(json.dumps({"minute": (time.time() - started) / 60, **sample(name, one)}) + "\n")
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
    """Print first, last and slope of each figure, draw the memory, and tell whether all is flat."""
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    end = max(each["minute"] for each in samples)
    flat = True
    images = sum(json.loads(path.read_text())["rows"] for path in (folder / "out" / "commits").iterdir())
    print(f"{end:.0f} minutes, {images} samples labelled\n")
    print("| process | figure | least, settled | least, at the end | largest | slope of the least, an hour |")
    print("|---|---|---|---|---|---|")
    for name in COLOURS:
        own = [each for each in samples if each["process"] == name]
        assert len({each["pid"] for each in own}) == 1, f"the {name} was replaced"
        for figure, most in MOST_GROWTH.items():
            least: dict[int, float] = {}
            for each in own:
                window = int(each["minute"] // WINDOW_MINUTES)
                least[window] = min(each[figure], least.get(window, each[figure]))
            settled = {window: value for window, value in least.items() if window * WINDOW_MINUTES >= SETTLING * end}
            minutes, values = WINDOW_MINUTES * np.array(list(settled)), np.array(list(settled.values()))
            slope = 60 * np.polyfit(minutes, values, 1)[0]
            flat &= abs(slope) <= most
            largest = max(each[figure] for each in own)
            print(f"| {name} | {figure} | {values[0]:.0f} | {values[-1]:.0f} | {largest:.0f} | {slope:+.1f} |")
    draw(samples, end, folder / "soak.png")
    return bool(flat)


def draw(samples: list[dict[str, Any]], end: float, path: Path) -> None:
    """Resident memory over time, from zero."""
    width, height, margin = 900, 320, 50
    top = 1.1 * max(each["rss_mb"] for each in samples)
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
        points = [place(each["minute"], each["rss_mb"]) for each in samples if each["process"] == name]
        pen.line(points, fill=colour, width=2)
        pen.text((points[-1][0] + 5, points[-1][1] - 6), name, fill=colour)
    image.save(path)


def main() -> int:
    """Exit code 0 when everything stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=Path("soak"))
    parser.add_argument("--only-report", action="store_true")
    given = parser.parse_args()
    if not given.only_report:
        soak(make_source(given.folder, given.minutes), given.folder, given.minutes)
    return 0 if report(given.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
