"""The `diffseg` command: finds the job by its name and hands it the rest of the line."""

from __future__ import annotations

import importlib
import sys

JOBS = {
    "label": "Label images: DiffSeg pseudo-labels for every sample of SRC, into OUT.",
    "submit": "Label on a Ray cluster from any machine: `diffseg label` as a job there.",
    "status": "Show how far a run is: shards, rows by status, seconds by step.",
    "verify": "Check every committed file of a run against its size, checksum and rows.",
    "evaluate": "Score the label maps of a run against ground truth, beside baselines without a model.",
    "show": "Draw one sample of a run: the image, its segments over it, and what its row says.",
    "report": "Write a page to look at a run with: gallery, failures, distributions, speed and settings.",
    "fit": "Learn from the labels of a run what belongs together: the affinity of attention's heads, or of features.",
    "export": "Write the label maps of a run in the format of another tool.",
    "train": "Train a segmentation network on the label maps of a run, and label images with it.",
    "shard": "Pack a folder of images into WebDataset shards.",
    "bench": "Measure speed and memory on this machine, beside the bare model and a plain loop.",
    "demo": "Label photographs and generated scenes on this machine and make a picture of the result.",
}


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg NAME …`; the exit code of the job, or 2 for an unknown one."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = arguments
    if name not in JOBS:
        print(f"diffseg: no command {name!r}; there are: {', '.join(JOBS)}", file=sys.stderr)
        return 2
    # imported only now: torch and ray take seconds, and --help should not
    return importlib.import_module(f"jobs.{name}").main(rest)


def _help() -> str:
    width = max(map(len, JOBS))
    lines = [f"  {name:<{width}}  {about}" for name, about in JOBS.items()]
    head = ["usage: diffseg COMMAND …", "", "Segmentation labels for millions of images without a human label.", ""]
    tail = ["", "`diffseg COMMAND --help` tells more. Each is also `python -m jobs.COMMAND`, for `ray job submit`."]
    return "\n".join([*head, *lines, *tail])


if __name__ == "__main__":
    sys.exit(main())
