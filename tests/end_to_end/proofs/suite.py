"""Run the whole test suite many times: by itself, and beside processes that keep both processors busy.

`python tests/end_to_end/proofs/suite.py --alone 5 --busy 3` prints a line for each run and exits with 1 if any failed.
The outputs of pytest are kept in --folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PYTEST = ["-m", "pytest", "--numprocesses", "3", "--dist", "loadfile", "--no-loadscope-reorder", "-q"]


def main() -> int:
    """Run the suite as often as asked; return 1 if any run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alone", type=int, default=5, help="runs with the machine to themselves")
    parser.add_argument("--busy", type=int, default=3, help="runs beside two processes that compute without pause")
    parser.add_argument("--folder", type=Path, default=Path("suite"), help="where the outputs of pytest are kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    passed = [run(options.folder / f"alone-{number}.txt") for number in range(options.alone)]
    with busy(2 if options.busy else 0):
        passed += [run(options.folder / f"busy-{number}.txt") for number in range(options.busy)]
    return 0 if all(passed) else 1


def run(log: Path) -> bool:
    """Run the suite once, print how it ended, and return True if every test passed."""
    started = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(
            [sys.executable, *PYTEST], stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    lines = log.read_text().splitlines()
    summary = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|error)", line)), "no summary")
    print(f"{log.stem}: {time.monotonic() - started:.0f} s, exit code {code}: {summary}", flush=True)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print(f"  {line}", flush=True)
    return code == 0


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` processes computing during the block."""
    processes = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _compute() -> None:
    while True:
        sum(range(10**6))


if __name__ == "__main__":
    sys.exit(main())
