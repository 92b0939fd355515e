"""Feed hostile shards to `label_shard` by the thousand: `python tests/end_to_end/proofs/fuzz.py --cases 2000 --seed 0`.

The shards are labelled in a process of their own, with a model that answers at once; all else is the real code. Here
they are made, timed and compared with what is due. Ends with 1, and says how to see it again, where anything is wrong.
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
"""For one shard. The slowest needs a few; what meets it hangs."""

MEGABYTES = 600
"""That all shards together may add to the peak memory of the process that labels them."""


LOST = ("truncated", "damaged")
"""Of these rows the key may be lost as well."""


class Failure(Exception):
    """What is wrong with one shard."""


class Labeller:
    """The process that labels; `label` one shard after another, `close` at the end."""

    def __init__(self, scratch: Path) -> None:
        # Whatever is made in a temporary folder must be gone again.
        folders = {"TMPDIR": str(scratch / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(scratch / "cache")}
        worker = Path(__file__).with_name("fuzz_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(worker), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment() | folders,
        )
        self.started = self._answer(SECONDS)

    def label(self, path: str, kind: str) -> dict[str, Any]:
        """The worker's answer: its error or "", its peak memory, and what it did that it must not."""
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
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()


def put(shard: HostileShard, folder: Path) -> tuple[str, str]:
    """Write the shard; (its path, its kind for the pipeline)."""
    folder.mkdir()
    for name, data in shard.files.items():
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(data)
    if not shard.suffix:
        # What is no file has no row, and nobody waits for a pipe.
        os.mkfifo(folder / "pipe.jpg")
        os.symlink("/dev/zero", folder / "zero.jpg")
        os.symlink(folder / "nowhere", folder / "dangling.jpg")
        (folder / "folder.jpg").mkdir()
        return str(folder), "images"
    (folder / f"s{shard.suffix}").write_bytes(shard.data)
    return str(folder / f"s{shard.suffix}"), "parquet" if shard.suffix == ".parquet" else "tar"


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of the one shard; its tar must hold the same. Raises ``Failure``."""
    (labels,) = (out / "labels").glob("*.parquet")
    rows = pq.read_table(labels).to_pylist()
    (tar,) = (out / "webdataset").glob("*.tar")
    with tar.open("rb") as file:
        members = tariterators.tar_file_expander([{"url": str(tar), "stream": file}])
        try:
            found = [json.loads(sample["json"])["key"] for sample in tariterators.group_by_keys(members)]
        except ValueError as error:
            raise Failure(f"the tar cannot be read: {str(error)[:200]}") from error
    if found != [row["key"] for row in rows]:
        raise Failure(f"the tar holds {len(found)} other samples than the {len(rows)} rows")
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
    """Raises ``Failure`` where a row is not what is due."""
    if not 0 <= len(rows) - len(shard.due) <= shard.beyond:
        raise Failure(f"{len(rows)} rows; due are {len(shard.due)} and up to {shard.beyond} more")
    for place, (row, due) in enumerate(zip(rows, shard.due, strict=False)):
        if due.key is not None and row["key"] != bounded_key(due.key)[0] and row["status"] not in LOST:
            raise Failure(f"row {place} has the key {row['key'][:80]!r} instead of {due.key[:80]!r}")
        if row["status"] not in due.statuses:
            raise Failure(f"row {place} ({due.kind or 'good'}) is {row['status']}: {row['error'][:200]}")
    truncated = sum(row["status"] == "truncated" for row in rows)
    if shard.suffix.startswith(".tar") and truncated > 1:
        raise Failure(f"{truncated} truncated rows")
    keys = [row["key"] for row in rows if row["status"] == "ok"]
    if len(set(keys)) < len(keys):
        raise Failure("a sample came out twice")


def check(shard: HostileShard, labeller: Labeller, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """Label one shard; (the outcome of each of its cases, the worker's answer). Raises ``Failure``."""
    source, out = scratch / "source", scratch / "out"
    try:
        path, kind = put(shard, source)
        before = {name for name in os.listdir(scratch) if name != "out"}
        answer = labeller.label(path, kind)
        if answer["forbidden"]:
            raise Failure(f"it did what it must not: {answer['forbidden']}")
        left = sorted({name for name in os.listdir(scratch) if name != "out"} ^ before) + os.listdir(scratch / "tmp")
        if left:
            raise Failure(f"files outside OUT: {left}")
        if answer["error"]:
            if shard.refused == "never" or not answer["error"].startswith("ShardError"):
                raise Failure(answer["error"])
            return ["refused"] * len(shard.cases), answer
        if {entry.name for entry in out.iterdir()} != {"labels", "webdataset", "commits"}:
            raise Failure(f"OUT holds {sorted(entry.name for entry in out.iterdir())}")
        rows = rows_of(out)
        if shard.refused == "must":
            raise Failure(f"{len(rows)} rows of what is no shard")
        compare(shard, rows)
        outcomes = [row["status"] for row, due in zip(rows, shard.due, strict=False) if due.kind]
        return outcomes or [max((row["status"] for row in rows), default="no rows")], answer
    finally:
        shutil.rmtree(source)
        shutil.rmtree(out, ignore_errors=True)


def fuzz(cases: int, seed: int, *, only: int | None = None, heavy: bool = True) -> int:
    """Run them all, print the table; how many shards failed. heavy: with those that take seconds each."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("tmp", "cache"):
        (scratch / name).mkdir()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    failures, peak, slowest, began = 0, (0, ""), (0.0, ""), time.monotonic()
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
                    baseline = answer["megabytes"]  # count the next ones from here
                    raise Failure(f"{answer['megabytes']} MB of memory after {labeller.started['megabytes']} MB")
                for kind, outcome in zip(shard.cases, outcomes, strict=True):
                    table[kind.partition(":")[0]][outcome] += 1
                if answer["megabytes"] > peak[0]:
                    peak = (answer["megabytes"], shard.kind)
            except Failure as failure:
                failures += 1
                print(
                    f"FAILED {shard.kind}: {failure}\n  again: --cases {cases} --seed {seed} --only {number}",
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
        f"{total} cases, {failures} shards failed, {time.monotonic() - began:.0f} s; slowest {slowest[0]:.1f} s "
        f"({slowest[1]}); memory {labeller.started['megabytes']} MB before, {peak[0]} MB at most ({peak[1]})"
    )
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one shard")
    given = parser.parse_args()
    sys.exit(1 if fuzz(given.cases, given.seed, only=given.only) else 0)
