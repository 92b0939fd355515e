"""Label thousands of hostile shards, and compare the rows with the expected ones.

    python tests/end_to_end/proofs/fuzz.py --cases 2000 --seed 0

Another process labels the shards, with a trivial model and otherwise the code of the product. This process makes them,
measures the time and compares the rows. For each shard that fails it prints the command that repeats it, and the exit
code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from webdataset import tariterators

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from hostile_input import hostile_shards
from hostile_shard import HostileShard
from runs import environment

from pipeline.output.rows import decode_mask
from pipeline.readers.samples import STATUSES, bounded_key

SECONDS = 60.0
"""Time limit for one shard. The slowest needs a few seconds, so a shard that exceeds the limit hangs."""

MEGABYTES = 600
"""By how much all shards together may raise the peak memory of the process that labels them."""

LOST = ("truncated", "damaged")
"""Statuses of rows whose key may be lost as well."""


class Failure(Exception):
    """A violated expectation about one shard."""


class Labeller:
    """The process that labels one shard after another."""

    def __init__(self, scratch: Path) -> None:
        # The checks include that nothing is left in the temporary folder.
        folders = {"TMPDIR": str(scratch / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(scratch / "cache")}
        worker = Path(__file__).with_name("fuzz_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(worker), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # An image plugin is imported at its first image. Compiled files of it would be writes outside OUT.
            env=environment() | folders | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.started = self._answer(SECONDS)

    def label(self, path: str, kind: str) -> dict[str, Any]:
        """Return the answer of the process: its error or "", its peak memory, and forbidden operations."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"path": path, "kind": kind}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise Failure(f"no answer in {seconds:.0f} s: it hangs")
        line = self._process.stdout.readline()
        if not line:
            raise Failure(f"the process ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()


def put(shard: HostileShard, folder: Path) -> tuple[str, str]:
    """Write a shard, and return its path and its kind."""
    folder.mkdir()
    for name, data in shard.files.items():
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(data)
    if not shard.suffix:
        # Only files get rows, and nobody waits for a pipe.
        os.mkfifo(folder / "pipe.jpg")
        os.symlink("/dev/zero", folder / "zero.jpg")
        os.symlink(folder / "nowhere", folder / "dangling.jpg")
        (folder / "folder.jpg").mkdir()
        return str(folder), "images"
    (folder / f"s{shard.suffix}").write_bytes(shard.data)
    return str(folder / f"s{shard.suffix}"), "parquet" if shard.suffix == ".parquet" else "tar"


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of the only shard. Raises ``Failure`` unless its tar holds the same samples."""
    (labels,) = (out / "labels").glob("*.parquet")
    rows = pq.read_table(labels).to_pylist()
    (tar,) = (out / "webdataset").glob("*.tar")
    with tar.open("rb") as file:
        members = tariterators.tar_file_expander([{"url": str(tar), "stream": file}])
        try:
            keys = [json.loads(sample["json"])["key"] for sample in tariterators.group_by_keys(members)]
        except ValueError as error:
            raise Failure(f"the tar cannot be read: {str(error)[:200]}") from error
    if keys != [row["key"] for row in rows]:
        raise Failure(f"the tar holds {len(keys)} samples, which are not those of the {len(rows)} rows")
    for place, row in enumerate(rows):
        if row["index"] != place or row["status"] not in STATUSES:
            raise Failure(f"row {place} has index {row['index']} and status {row['status']}")
        if (row["status"] == "ok") != (row["mask"] is not None) or (row["status"] == "ok") != (row["error"] == ""):
            raise Failure(f"row {place} is {row['status']}, its error {row['error']!r}")
        if row["mask"] is not None and decode_mask(row["mask"]).shape != (row["height"], row["width"]):
            raise Failure(f"row {place} has a mask of another size")
        if max(len(row["error"]), len(row["key"]), len(row["meta"])) > 2**21:
            raise Failure(f"row {place} has megabytes of text")
    return rows


def compare(shard: HostileShard, rows: list[dict[str, Any]]) -> None:
    """Raise ``Failure`` if a row is not an expected one."""
    if not 0 <= len(rows) - len(shard.expected) <= shard.beyond:
        raise Failure(f"{len(rows)} rows; expected {len(shard.expected)} and up to {shard.beyond} more")
    for place, (row, expected) in enumerate(zip(rows, shard.expected, strict=False)):
        if expected.key is not None and row["key"] != bounded_key(expected.key)[0] and row["status"] not in LOST:
            raise Failure(f"row {place} has the key {row['key'][:80]!r} instead of {expected.key[:80]!r}")
        if row["status"] not in expected.statuses:
            raise Failure(f"row {place} ({expected.kind or 'good'}) is {row['status']}: {row['error'][:200]}")
    truncated = sum(row["status"] == "truncated" for row in rows)
    if shard.suffix.startswith(".tar") and truncated > 1:
        raise Failure(f"{truncated} truncated rows")
    keys = [row["key"] for row in rows if row["status"] == "ok"]
    if len(set(keys)) < len(keys):
        raise Failure("two ok rows have the same key")


def check(shard: HostileShard, labeller: Labeller, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """Label a shard; return the outcome of each of its cases and the answer of the process. Raises ``Failure``."""
    source, out = scratch / "source", scratch / "out"
    try:
        path, kind = put(shard, source)
        before = {name for name in os.listdir(scratch) if name != "out"}
        answer = labeller.label(path, kind)
        if answer["forbidden"]:
            raise Failure(f"forbidden operations: {answer['forbidden']}")
        left = sorted({name for name in os.listdir(scratch) if name != "out"} ^ before) + left_in(scratch / "tmp")
        if left:
            raise Failure(f"files outside OUT: {left}")
        if answer["error"]:
            if shard.refused == "never" or not answer["error"].startswith(("ShardError", "SourceError")):
                raise Failure(answer["error"])
            return ["refused"] * len(shard.cases), answer
        if {entry.name for entry in out.iterdir()} != {"labels", "webdataset", "commits"}:
            raise Failure(f"OUT holds {sorted(entry.name for entry in out.iterdir())}")
        rows = rows_of(out)
        if shard.refused == "must":
            raise Failure(f"{len(rows)} rows of a file that should be refused")
        compare(shard, rows)
        outcomes = [row["status"] for row, expected in zip(rows, shard.expected, strict=False) if expected.kind]
        return outcomes or [max((row["status"] for row in rows), default="no rows")], answer
    finally:
        shutil.rmtree(source)
        shutil.rmtree(out, ignore_errors=True)


def left_in(temporary: Path) -> list[str]:
    """Return the paths in the temporary folder, without the user's private folder for scratch folders."""
    private = temporary / f"diffseg-{os.getuid()}"
    return [str(path.relative_to(temporary)) for path in temporary.rglob("*") if path != private]


def fuzz(cases: int, seed: int, *, only: int | None = None, heavy: bool = True) -> int:
    """Label the shards of a seed, print a table of the outcomes, and return the number of shards that failed.

    Args:
        cases: Number of hostile cases, about.
        seed: Seed of the cases.
        only: The number of the only shard to label; None labels all.
        heavy: Include the cases that take seconds each.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("tmp", "cache"):
        (scratch / name).mkdir()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    failures, peak, slowest, started = 0, (0, ""), (0.0, ""), time.monotonic()
    labeller = Labeller(scratch)
    baseline = labeller.started["megabytes"]
    try:
        for number, shard in enumerate(hostile_shards(seed, cases, str(scratch / "outside"), heavy=heavy)):
            if only is not None and number != only:
                continue
            clock = time.monotonic()
            try:
                outcomes, answer = check(shard, labeller, scratch)
                if answer["megabytes"] - baseline > MEGABYTES:
                    baseline = answer["megabytes"]  # the peak never falls
                    raise Failure(f"{answer['megabytes']} MB of memory after {labeller.started['megabytes']} MB")
                for kind, outcome in zip(shard.cases, outcomes, strict=True):
                    table[kind.partition(":")[0]][outcome] += 1
                if answer["megabytes"] > peak[0]:
                    peak = (answer["megabytes"], shard.kind)
            except Failure as failure:
                failures += 1
                print(
                    f"FAILED {shard.kind}: {failure}\n  repeat with --cases {cases} --seed {seed} --only {number}",
                    flush=True,
                )
                labeller.close()
                labeller = Labeller(scratch)
            slowest = max(slowest, (time.monotonic() - clock, shard.kind))
    finally:
        labeller.close()
        shutil.rmtree(scratch)
    for kind, outcomes in sorted(table.items()):
        print(f"{kind:28}{outcomes.total():6}  {', '.join(f'{name} {n}' for name, n in sorted(outcomes.items()))}")
    total = sum(outcomes.total() for outcomes in table.values())
    print(
        f"{total} cases, {failures} shards failed, {time.monotonic() - started:.0f} s; slowest {slowest[0]:.1f} s "
        f"({slowest[1]}); memory {labeller.started['megabytes']} MB before, {peak[0]} MB at most ({peak[1]})"
    )
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="number of hostile cases, about")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--only", type=int, help="number of the only shard to label")
    options = parser.parse_args()
    sys.exit(1 if fuzz(options.cases, options.seed, only=options.only) else 0)
