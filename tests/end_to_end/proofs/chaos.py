"""Rounds of chaos: runs that are struck at random moments, and must end in the tree of the undisturbed run.

`python tests/end_to_end/proofs/chaos.py --rounds 25 --seed 0 --folder chaos`. Everything follows from the seed but the speed
of the machine. FOLDER holds the input, the undisturbed run and a JSON line for each round that is over; started again,
it goes on with the next round. Exit code: 0 all as it should be; 1 not so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from clusters import Cluster, clear, short_folder
from process_faults import SHARDS, SLOW, StruckRun, draw
from runs import BOTH, differences, rows_of

import jobs.label
import jobs.shard
import jobs.verify
from diffseg.tiny.scenes.scenes import generate_scene
from pipeline.output.commit import read_commits
from pipeline.storage import Storage

SAMPLES = 3
SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Round:
    """What became of one round.

    strikes: kinds, as drawn. told: a line for each blow. retried: shards done by a second attempt or a later one.
    faults: all that must not be: wrong exit codes, trees that differ, processes left behind. Good rounds have none.
    """

    number: int
    seed: int
    strikes: list[str]
    told: list[str]
    drivers: int
    retried: int
    seconds: float
    rows: int
    lost: int
    doubled: int
    equal: bool
    faults: list[str] = field(default_factory=list)


class Arena:
    """Input and undisturbed run of a seed, made once; the cluster lives on from round to round while it is whole."""

    def __init__(self, folder: Path, clusters: Path, seed: int) -> None:
        self.seed, self._folder, self._clusters = seed, folder.resolve() / f"seed-{seed}", clusters
        self.source, self.expected = self._folder / "tars", self._folder / "undisturbed"
        self.rounds = self._folder / "rounds.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_earlier()
        self._make_source()
        # An interrupted one goes on, and one that is done has nothing left to do.
        _succeed(jobs.label.main, self.source, self.expected, "--no-ray", *SLOW, *BOTH)
        self._keys = Counter(row["key"] for row in rows_of(self.expected))
        assert self._keys.total() == SHARDS * SAMPLES
        self._cluster: Cluster | None = None

    def _clear_earlier(self) -> None:
        """Kill the clusters of a chaos that was itself killed."""
        note = self._folder / "clusters"
        if note.exists():
            clear(Path(note.read_text()))
        note.write_text(str(self._clusters))

    def _make_source(self) -> None:
        if self.source.exists():
            return
        images, aside = self._folder / "images", self._folder / "tars.aside"
        for folder in (images, aside):
            shutil.rmtree(folder, ignore_errors=True)
        images.mkdir()
        for number in range(SHARDS * SAMPLES):
            scene = generate_scene(1000 * self.seed + number, SIDE)
            Image.fromarray(scene.image).save(images / f"{number:04d}.png")
        _succeed(jobs.shard.main, images, aside, "--samples-per-shard", str(SAMPLES))
        aside.rename(self.source)

    def played(self) -> list[Round]:
        """The rounds of earlier calls; a line that was being written when they were killed does not count."""
        found = []
        for line in self.rounds.read_text().splitlines() if self.rounds.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(Round(**json.loads(line)))
        return found

    def keep(self, played: Round) -> None:
        """Append a round's line."""
        with self.rounds.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(played), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def play(self, number: int) -> Round:
        """One round, from an empty OUT to its verdict."""
        strikes = draw(random.Random(f"{self.seed} {number}"))
        out = self._folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if self._cluster is not None and not self._cluster.whole():
            self._cluster.kill()
            self._cluster = None
        began = time.monotonic()
        logs = self._folder / "logs" / str(number)
        struck = StruckRun(self.source, out, folder=self._clusters, logs=logs, cluster=self._cluster)
        with contextlib.closing(struck) as run:
            for strike in strikes:
                run.suffer(strike)
            run.finish()
            self._cluster = run.cluster
        seconds = time.monotonic() - began
        faults = [*run.faults, *(f"left behind: {name}" for name in run.left_behind())]
        keys = Counter(row["key"] for row in rows_of(out))
        unequal = differences(out, self.expected)
        if unequal:
            shutil.copytree(out, self._folder / f"failed-{number}", dirs_exist_ok=True)
            faults.append(f"the trees differ: {', '.join(unequal[:8])}")
        code, said = _ended(jobs.verify.main, out)
        if code != 0:
            faults.append(f"verify: {said.strip()[-600:]}")
        return Round(
            number=number,
            seed=self.seed,
            strikes=[strike.kind for strike in strikes],
            told=run.told,
            drivers=run.drivers,
            retried=sum(commit.attempt > 1 for commit in read_commits(Storage(url=str(out))).values()),
            seconds=round(seconds, 1),
            rows=keys.total(),
            lost=(self._keys - keys).total(),
            doubled=(keys - self._keys).total(),
            equal=not unequal,
            faults=faults,
        )

    def close(self) -> None:
        """Kill the cluster."""
        if self._cluster is not None:
            self._cluster.kill()


def good(played: Round) -> bool:
    """Whether nothing of a round is other than it should be."""
    return played.equal and not (played.lost or played.doubled or played.faults)


def play_rounds(folder: Path, *, rounds: int, seed: int) -> list[Round]:
    """The first `rounds` rounds of a seed: those that are not in the folder yet are played."""
    with short_folder() as clusters:
        arena = Arena(folder, clusters, seed)
        done = {played.number for played in arena.played()}
        try:
            for number in sorted(set(range(rounds)) - done):
                played = arena.play(number)
                arena.keep(played)
                print(json.dumps(dataclasses.asdict(played), ensure_ascii=False, indent=1), flush=True)
        finally:
            arena.close()
        return sorted((p for p in arena.played() if p.number < rounds), key=lambda played: played.number)


def table(rounds: list[Round]) -> str:
    """Markdown."""
    lines = [
        "| round | strikes | drivers | shards tried again | seconds | rows | lost | doubled | tree | verdict |",
        "|--:|---|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for r in rounds:
        cells: list[Any] = [r.number, ", ".join(r.strikes), r.drivers, r.retried, f"{r.seconds:.0f}", r.rows, r.lost]
        cells += [r.doubled, "equal" if r.equal else "differs", "good" if good(r) else "; ".join(r.faults)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Play, print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("chaos"))
    flags = parser.parse_args()
    # So that the clusters are taken down then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rounds = play_rounds(flags.folder, rounds=flags.rounds, seed=flags.seed)
    print(table(rounds))
    return 0 if all(map(good, rounds)) else 1


def _ended(job: Callable[[list[str]], int], *words: str | Path) -> tuple[int, str]:
    """A command in this process: its exit code, and all that it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return job([str(word) for word in words]), said.getvalue()


def _succeed(job: Callable[[list[str]], int], *words: str | Path) -> None:
    code, said = _ended(job, *words)
    if code != 0:
        raise RuntimeError(f"{job.__module__}: {code}: {said[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
