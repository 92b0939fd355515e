"""Rounds of two runs with different listings of SRC in one OUT, and the check that no row is lost or doubled."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from blank_worker import all_rows, blank_run, file_rows
from changing_source import ChangingSource
from interleaving import Run, interleaved, play
from runs import differences

from pipeline.errors import RunFailed
from pipeline.executor.summary import RunSummary

LABEL = {"format": "parquet,webdataset"}


def play_round(folder: Path, seed: int) -> str:
    """Play one round, check its outcome, and return a description of it.

    SRC changes up to three times between the starts of the runs. Their steps are interleaved at random, each run may be
    killed, and OUT may hold a finished run of an earlier state of SRC.

    Args:
        folder: An empty folder.
        seed: Seed of the source, of its changes, and of the order of the steps.
    """
    rng = random.Random(f"two runs {seed}")
    kind: Any = rng.choice(["images", "tars", "tars"])
    source = ChangingSource(folder / "in", kind, seed, files=4)
    out = folder / "out"
    if rng.random() < 0.5:
        blank_run(source.folder, out, label=LABEL)
        source.change()
    kills = [rng.randrange(1, 120) if rng.random() < 0.3 else None for _ in range(2)]
    runs = [
        Run(name, lambda: blank_run(source.folder, out, label=LABEL), steps_until_killed=kill)
        for name, kill in zip("AB", kills, strict=True)
    ]

    def change() -> None:
        for _ in range(rng.randrange(4)):
            source.change()

    with interleaved(str(out), lambda: runs):
        play(rng, *runs, before_second=change)
    text = f"seed {seed}, {kind}, {', '.join(source.changes) or 'no changes'}: " + "; ".join(
        f"{run.name} {_outcome(run)} after {run.steps} steps" for run in runs
    )
    if (out / "run.json").exists() and not any(run.was_killed for run in runs):
        _check_rows(out, runs, text)
    blank_run(source.folder, out, label=LABEL)
    blank_run(source.folder, folder / "fresh", label=LABEL)
    assert differences(out, folder / "fresh") == [], text
    assert all_rows(out) == all_rows(folder / "fresh"), text
    return text


def _outcome(run: Run) -> str:
    if run.was_killed:
        return "was killed"
    if run.error is not None:
        if not isinstance(run.error, RunFailed):
            raise run.error
        return f"stopped ({str(run.error).partition(': ')[2][:60]}…)"
    assert isinstance(run.result, RunSummary)
    # A tar that was removed or renamed after the listing cannot be read.
    return "ended with failed shards" if run.result.failed else "ended"


def _check_rows(out: Path, runs: list[Run], text: str) -> None:
    """Check the rows that readers see when no run was killed, before any other run."""
    keys = [row["key"] for row in all_rows(out)]
    assert len(keys) == len(set(keys)), text
    assert any(run.error is None for run in runs), text
    if all(run.error is None and not run.result.failed for run in runs):
        assert sorted(keys) == sorted(row["key"] for row in file_rows(out)), text
