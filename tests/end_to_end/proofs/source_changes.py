"""Sources that change between runs and during them: OUT always ends as a fresh run over the same source leaves it.

    python tests/end_to_end/proofs/source_changes.py --changes 20 --rounds 300 --seed 0

The proof has two parts, both without a model:

* A folder of images and a folder of tars get a number of random changes, one after another. After each change the same
  command runs, and OUT is compared with that of a fresh run, file by file and row by row.
* In each round, two runs with different listings of SRC write into one OUT. Their steps are interleaved in a random
  order, and some runs are killed in the middle. The rows that readers see are checked. Then the next run is compared as
  above.

Everything follows from the seed. Exit code: 0 if no row was lost or doubled, 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))  # before the folders of tests that have the names of packages

from blank_worker import all_rows, blank_run, file_rows
from changing_source import ChangingSource
from runs import differences
from two_runs import play_round


def change_and_compare(kind: Any, changes: int, seed: int) -> tuple[Counter[str], int]:
    """Change a source, run after each change, and compare.

    Returns:
        The number of changes of each kind, and the number of rows that were labelled, which a fresh run each time would
        exceed by far.
    """
    kinds: Counter[str] = Counter()
    labelled = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = ChangingSource(folder / "in", kind, seed, files=30)
        blank_run(source.folder, folder / "out")
        for number in range(changes):
            change = source.change()
            kinds[change.partition(" ")[0]] += 1
            labelled += blank_run(source.folder, folder / "out").images
            fresh = folder / f"fresh-{number}"
            blank_run(source.folder, fresh)
            unequal = differences(folder / "out", fresh)
            assert not unequal, f"after {source.changes}: {unequal}"
            assert all_rows(folder / "out") == all_rows(fresh) == file_rows(folder / "out"), source.changes
    return kinds, labelled


def main() -> int:
    """Run both parts, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes, and of the first round")
    parser.add_argument("--verbose", action="store_true", help="print a line for each round")
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    for kind in ("images", "tars"):
        kinds, labelled = change_and_compare(kind, flags.changes, flags.seed)
        listing = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        print(f"{kind}: {flags.changes} of {flags.changes} changes end in equal rows ({listing}); {labelled} labelled")
    failures = 0
    outcomes: Counter[str] = Counter()
    for seed in range(flags.seed, flags.seed + flags.rounds):
        with tempfile.TemporaryDirectory() as name:
            try:
                text = play_round(Path(name), seed)
            except Exception:
                failures += 1
                print(f"FAILED seed {seed}: {traceback.format_exc()}", flush=True)
                continue
        outcomes[" and ".join(sorted(word for word in ("ended", "stopped", "killed") if word in text))] += 1
        if flags.verbose:
            print(text, flush=True)
    shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"two runs: {flags.rounds - failures} of {flags.rounds} rounds end in equal rows ({shown})")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
