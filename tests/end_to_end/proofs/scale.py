"""What the driver costs with very many shards: a worker that only sleeps, and records by the ten thousand on S3.

python tests/end_to_end/proofs/scale.py --shards 20000 --actors 100
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

from pipeline.executor.driver import label_run
from pipeline.output.commit import Commit, read_commits, totals, write_commit
from pipeline.output.listing import Listing
from pipeline.output.plan import make_plan
from pipeline.readers.find import find_shards
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage

sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline"))
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
import doubles
from object_store import LABELS, ObjectStore

ROWS_A_SHARD = 10_000
BILLIONS = 5


def row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The largest resident memory of this process meanwhile, in MB."""
    process, peak, over = psutil.Process(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def run_shards(source: str, out: Path, count: int, actors: int, seconds: float) -> None:
    """All shards on sleeping workers: what the driver needs, and how far from ideal the whole is."""
    doubles.Sleeper.seconds = seconds
    ray.cloudpickle.register_pickle_by_value(doubles)
    before, started = psutil.Process().memory_info().rss / 2**20, time.time()
    cpu = time.process_time()
    with peak_memory() as peak:
        summary = label_run(
            source,
            str(out),
            settings=LabelSettings(),
            worker=WorkerSettings(device="cpu"),
            run=RunSettings(workers=actors, address="local"),
            worker_class=doubles.Sleeper,
        )
    cpu, wall = time.process_time() - cpu, time.time() - started
    assert (summary.images, summary.failed) == (count * ROWS_A_SHARD, {}), summary.failed
    commits = read_commits(Storage(url=str(out))).values()
    assert all(commit.attempt == 1 for commit in commits)
    first, last = min(commit.started for commit in commits), max(commit.finished for commit in commits)
    # Workers start one after another on two cores: what they could have done from the moment each was there.
    ideal = count * seconds / actors
    row("shards, actors, seconds a shard", f"{count:,}, {actors}, {seconds:g}")
    row("wall time; from the first shard to the last", f"{wall:.0f} s; {last - first:.0f} s")
    row("efficiency: ideal time / time from the first shard to the last", f"{ideal / (last - first):.2f}")
    late = sorted(commit.started for commit in commits)[count // 2 :]
    row("the same over the second half of the shards, all actors there", f"{ideal / 2 / (late[-1] - late[0]):.2f}")
    row("driver CPU a shard", f"{1000 * cpu / count:.1f} ms")
    row("driver memory before; largest", f"{before:.0f} MB; {peak[0]:.0f} MB")


def put_records(out: Storage, shards: list[Shard]) -> None:
    """Records as a run leaves them, of all but the last shard."""

    def put(shard: Shard) -> None:
        files = {f"labels/{shard.name}.parquet": {"bytes": 10**8, "sha256": "0" * 64}}
        seconds = dict.fromkeys(
            ("read", "decode", "encode", "unet", "aggregate", "merge", "decide", "write"), 1234.5678
        )
        commit = Commit(
            shard=shard.name,
            state="done",
            fingerprint="f" * 16,
            attempt=1,
            inputs=shard.digest(),
            rows=ROWS_A_SHARD,
            counts={"ok": ROWS_A_SHARD - 7, "undecodable": 7},
            files=files,
            seconds=seconds,
            started=time.time(),
            finished=time.time(),
            worker="worker-0123456789",
        )
        write_commit(out, commit)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(put, shards[:-1]))


def resume(out: Storage, shards: list[Shard], where: str) -> None:
    """From nothing to the first shard to be done, and the totals of all that were done before."""
    put_records(out, shards)
    started = time.perf_counter()
    before = psutil.Process().memory_info().rss / 2**20
    with peak_memory() as peak:
        plan = make_plan(out, shards, Listing.of(shards), "f" * 16, retry_failed=False)
    planned = time.perf_counter()
    assert [shard.name for shard in plan.todo] == [shards[-1].name]
    assert plan.counts_before().total() == (len(shards) - 1) * ROWS_A_SHARD
    counts, _ = totals(read_commits(out).values())
    read = time.perf_counter()
    assert counts.total() == (len(shards) - 1) * ROWS_A_SHARD
    path = out.files("commits")[0][0]
    size = len(out.read_bytes(path))
    row(f"resume on {where}: until the first shard", f"{planned - started:.1f} s")
    row("memory that the listing takes meanwhile", f"{peak[0] - before:.0f} MB")
    row(f"`diffseg status` on {where}: reading all {len(plan.done):,} records", f"{read - planned:.1f} s")
    row("size of a record", f"{size} bytes")
    project(len(shards), planned - started, read - planned, size)


def project(count: int, listing: float, reading: float, size: int) -> None:
    shards = BILLIONS * 10**9 // ROWS_A_SHARD
    times = shards / count
    row(f"{BILLIONS} billion images: shards, listing requests of 1,000 keys", f"{shards:,}, {shards // 1000:,}")
    row(f"{BILLIONS} billion images: all records", f"{shards * size / 1e9:.1f} GB")
    row(
        f"{BILLIONS} billion images: listing; reading all records, in proportion",
        f"{listing * times:.0f} s; {reading * times:.0f} s",
    )


def main() -> int:
    """Print the table; an assertion fails where a shard was lost, doubled or attempted twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--actors", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only-resume", action="store_true")
    given = parser.parse_args()
    print("| what | figure |\n|---|---|")
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        source = f"{folder}/in/{{00000..{given.shards - 1:05d}}}.tar"
        shards = find_shards(source)
        if not given.only_resume:
            run_shards(source, Path(folder) / "out", given.shards, given.actors, given.seconds)
        with ObjectStore() as store:
            resume(Storage(url=f"s3://{LABELS}/scale", options=store.options()), shards, "S3")
    return 0


if __name__ == "__main__":
    sys.exit(main())
