"""Rounds of chaos: runs into which faults are injected leave the same files as an undisturbed run.

    python tests/end_to_end/proofs/chaos.py --rounds 25 --seed 0 --folder chaos

The seed determines everything except the speed of the machine. FOLDER holds the input, the undisturbed run and a JSON
line for each finished round; the same command continues with the next round. The exit code is 0 if all rounds are good,
else 1.
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
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from chaos_round import Round, table
from clusters import Cluster, clear, short_folder
from process_faults import SHARDS, SLOW, DisturbedRun, ProcessFault, draw_faults
from runs import BOTH, differences, rows_of
from source_faults import GrowingSource, OlderRun, SourceFault, draw_source_fault

import jobs.label
import jobs.shard
import jobs.verify
from diffseg.tiny.scenes.scenes import generate_scene
from pipeline.output.commit import read_commits
from pipeline.storage import Storage

SAMPLES = 3
SIDE = 96
GROWTH = 1 + SAMPLES
"""Number of samples that SRC gains when it grows."""


class Arena:
    """The input and the undisturbed run of a seed, and a cluster that is used again while both its nodes are up."""

    def __init__(self, folder: Path, clusters: Path, seed: int) -> None:
        self.seed, self._folder, self._clusters = seed, folder.resolve() / f"seed-{seed}", clusters
        self.source = self._folder / "tars"
        self._growing = GrowingSource(self.source, self._folder / "original", self._folder / "added")
        self.rounds = self._folder / "rounds.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_earlier()
        self._make_tars("original", range(SHARDS * SAMPLES), SAMPLES)
        # When SRC grows, the first tar is replaced by one with another sample, and a tar is added.
        self._make_tars("added", [*range(SAMPLES), *range(SHARDS * SAMPLES, SHARDS * SAMPLES + GROWTH)], SAMPLES + 1)
        self._cluster: Cluster | None = None

    def _clear_earlier(self) -> None:
        """Kill the clusters of an earlier process that was itself killed."""
        note = self._folder / "clusters"
        if note.exists():
            clear(Path(note.read_text()))
        note.write_text(str(self._clusters))

    def _make_tars(self, name: str, numbers: Iterable[int], samples: int) -> None:
        """Make a folder of tars, unless it exists. The last tar of `added` gets a new name."""
        if (self._folder / name).exists():
            return
        images, aside = self._folder / "images", self._folder / f"{name}.aside"
        for folder in (images, aside):
            shutil.rmtree(folder, ignore_errors=True)
        images.mkdir()
        for number in numbers:
            scene = generate_scene(1000 * self.seed + number, SIDE)
            Image.fromarray(scene.image).save(images / f"{number:04d}.png")
        _run_checked(jobs.shard.main, images, aside, "--samples-per-shard", str(samples))
        if name == "added":
            (aside / "000001.tar").rename(aside / "new.tar")
        aside.rename(self._folder / name)

    def _undisturbed(self, *, grown: bool) -> Path:
        """Return OUT of an undisturbed run, and leave SRC as it was before it grew."""
        out = self._folder / ("undisturbed-grown" if grown else "undisturbed")
        self._growing.reset()
        if grown:
            self._growing.grow()
        # A run that was interrupted resumes, and a finished one has nothing left to do.
        _run_checked(jobs.label.main, self.source, out, "--no-ray", *SLOW, *BOTH)
        assert len(rows_of(out)) == SHARDS * SAMPLES + (GROWTH if grown else 0)
        self._growing.reset()
        return out

    def finished(self) -> list[Round]:
        """Return the finished rounds. An incomplete line, of a process that was killed, is ignored."""
        rounds = []
        for line in self.rounds.read_text().splitlines() if self.rounds.exists() else []:
            with contextlib.suppress(ValueError):
                rounds.append(Round(**json.loads(line)))
        return rounds

    def save(self, result: Round) -> None:
        """Append the line of a round."""
        with self.rounds.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(result), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def play(self, number: int) -> Round:
        """Play one round, from an empty OUT to its result."""
        faults = draw_faults(random.Random(f"{self.seed} {number}"))
        rng = random.Random(f"{self.seed} {number} source")
        source_fault = draw_source_fault(rng)
        grows_after = rng.randrange(len(faults) + 1)
        expected, out = self._undisturbed(grown=bool(source_fault)), self._folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if self._cluster is not None and not self._cluster.is_whole():
            self._cluster.kill()
            self._cluster = None
        started = time.monotonic()
        run = self._disturbed(out, self._folder / "logs" / str(number), faults, source_fault, grows_after)
        self._cluster = run.cluster
        seconds = time.monotonic() - started
        violations = [*run.violations, *(f"left behind: {name}" for name in run.left_behind())]
        keys, expected_keys = (Counter(row["key"] for row in rows_of(folder)) for folder in (out, expected))
        unequal = differences(out, expected)
        if unequal:
            shutil.copytree(out, self._folder / f"failed-{number}", dirs_exist_ok=True)
            violations.append(f"the files differ: {', '.join(unequal[:8])}")
        code, output = _run(jobs.verify.main, out)
        if code != 0:
            violations.append(f"verify: {output.strip()[-600:]}")
        return Round(
            number=number,
            seed=self.seed,
            faults=[*(fault.kind for fault in faults), *filter(None, [source_fault])],
            events=run.events,
            drivers=run.drivers,
            retried=sum(commit.attempt > 1 for commit in read_commits(Storage(url=str(out))).values()),
            seconds=round(seconds, 1),
            rows=keys.total(),
            lost=(expected_keys - keys).total(),
            duplicated=(keys - expected_keys).total(),
            equal=not unequal,
            violations=violations,
        )

    def _disturbed(
        self, out: Path, logs: Path, faults: list[ProcessFault], source_fault: SourceFault, grows_after: int
    ) -> DisturbedRun:
        """Run the command with its faults until SRC is labelled, and return the ended run.

        Args:
            out: OUT.
            logs: The folder for the output of the drivers.
            faults: The process faults, in their order.
            source_fault: What happens to SRC.
            grows_after: After how many process faults SRC grows, if `source_fault` says that it grows between them.
        """
        with contextlib.ExitStack() as stack:
            older = None
            if source_fault == "older run":
                log = self._folder / "older.log"
                older = stack.enter_context(contextlib.closing(OlderRun(self.source, out, log, [*SLOW, *BOTH])))
                self._growing.grow()
            disturbed = DisturbedRun(self.source, out, folder=self._clusters, logs=logs, cluster=self._cluster)
            run = stack.enter_context(contextlib.closing(disturbed))
            for place, fault in enumerate([*faults, None]):
                if source_fault == "source grows" and place == grows_after:
                    self._growing.grow()
                    run.note("the source grows")
                if fault is not None:
                    run.inject(fault)
            run.finish()
            if older is not None:
                run.violations += filter(None, [older.finish()])
                run.note("the older run has continued and ended")
            if source_fault:
                run.run_again()
            return run

    def close(self) -> None:
        """Kill the cluster."""
        if self._cluster is not None:
            self._cluster.kill()


def play_rounds(folder: Path, *, rounds: int, seed: int) -> list[Round]:
    """Return the first rounds of a seed, and play those that the folder does not hold yet."""
    with short_folder() as clusters:
        arena = Arena(folder, clusters, seed)
        done = {result.number for result in arena.finished()}
        try:
            for number in sorted(set(range(rounds)) - done):
                result = arena.play(number)
                arena.save(result)
                print(json.dumps(dataclasses.asdict(result), ensure_ascii=False, indent=1), flush=True)
        finally:
            arena.close()
        return sorted((r for r in arena.finished() if r.number < rounds), key=lambda result: result.number)


def main() -> int:
    """Play the rounds, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="number of rounds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults and of the input")
    parser.add_argument("--folder", type=Path, default=Path("chaos"), help="folder for the input and the results")
    flags = parser.parse_args()
    # SIGTERM ends the process normally, so its clusters are killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rounds = play_rounds(flags.folder, rounds=flags.rounds, seed=flags.seed)
    print(table(rounds))
    return 0 if all(result.is_good for result in rounds) else 1


def _run(job: Callable[[list[str]], int], *words: str | Path) -> tuple[int, str]:
    """Run a command in this process and return its exit code and its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return job([str(word) for word in words]), output.getvalue()


def _run_checked(job: Callable[[list[str]], int], *words: str | Path) -> None:
    """Run a command in this process. Raises RuntimeError if it fails."""
    code, output = _run(job, *words)
    if code != 0:
        raise RuntimeError(f"{job.__module__}: {code}: {output[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
