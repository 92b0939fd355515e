"""The costs of the driver and of `status` with very many shards: workers that only sleep, and commit records on S3.

python tests/end_to_end/proofs/scale.py --shards 20000 --actors 100
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil
import ray

import jobs.status
from pipeline.executor.driver import label_run
from pipeline.output import overview
from pipeline.output.commit import Commit, read_commits, write_commit
from pipeline.output.listing import Listing, write_listing
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.plan import make_plan
from pipeline.readers.find import find_shards
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage

sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline"))
sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
import doubles
from object_store import LABELS, ObjectStore

ROWS_PER_SHARD = 10_000
BILLIONS = 5


def row(quantity: str, value: str) -> None:
    print(f"| {quantity} | {value} |", flush=True)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose only element is the largest resident memory of this process during the block, in MB."""
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
    """Run all shards on sleeping workers, and print the costs of the driver and the efficiency of the run."""
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
    assert (summary.images, summary.failed) == (count * ROWS_PER_SHARD, {}), summary.failed
    commits = read_commits(Storage(url=str(out))).values()
    assert all(commit.attempt == 1 for commit in commits)
    first, last = min(commit.started for commit in commits), max(commit.finished for commit in commits)
    # With two cores, workers start one after another. The ideal run would use each one from the first shard on.
    ideal = count * seconds / actors
    row("shards, actors, seconds per shard", f"{count:,}, {actors}, {seconds:g}")
    row("wall time; from the first shard to the last", f"{wall:.0f} s; {last - first:.0f} s")
    row("efficiency: ideal time / time from the first shard to the last", f"{ideal / (last - first):.2f}")
    late = sorted(commit.started for commit in commits)[count // 2 :]
    row(
        "efficiency over the second half of the shards, when all actors are ready",
        f"{ideal / 2 / (late[-1] - late[0]):.2f}",
    )
    row("driver CPU per shard", f"{1000 * cpu / count:.1f} ms")
    row("driver memory: before the run; peak", f"{before:.0f} MB; {peak[0]:.0f} MB")


def put_records(out: Storage, shards: list[Shard]) -> None:
    """Write commit records as a run leaves them, of all shards but the last."""

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
            rows=ROWS_PER_SHARD,
            counts={"ok": ROWS_PER_SHARD - 7, "undecodable": 7},
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
    """Measure the time to the first shard of a resumed run."""
    put_records(out, shards)
    started = time.perf_counter()
    before = psutil.Process().memory_info().rss / 2**20
    with peak_memory() as peak:
        plan = make_plan(out, shards, Listing.of(shards), "f" * 16, retry_failed=False)
    planned = time.perf_counter()
    assert [shard.name for shard in plan.todo] == [shards[-1].name]
    assert plan.counts_before().total() == (len(shards) - 1) * ROWS_PER_SHARD
    path = out.files("commits")[0][0]
    size = len(out.read_bytes(path))
    row(f"resume on {where}: until the first shard", f"{planned - started:.1f} s")
    row("memory of the listing", f"{peak[0] - before:.0f} MB")
    row("size of a record", f"{size} bytes")
    shards_of_billions = BILLIONS * 10**9 // ROWS_PER_SHARD
    row(
        f"{BILLIONS} billion images: shards, listing requests of 1,000 keys",
        f"{shards_of_billions:,}, {shards_of_billions // 1000:,}",
    )
    row(f"{BILLIONS} billion images: all records", f"{shards_of_billions * size / 1e9:.1f} GB")
    row(
        f"{BILLIONS} billion images: resume, in proportion",
        f"{(planned - started) * shards_of_billions / len(shards):.0f} s",
    )


def show_status(out: Storage, shards: list[Shard], source: str, where: str) -> None:
    """Measure `diffseg status` over the records that `put_records` has written: listing them, and reading a sample."""
    listing = Listing.of(shards)
    write_listing(out, listing)
    manifest = Manifest(
        source=source,
        settings=LabelSettings().plain(),
        model_sha256="",
        resolved={},
        environment={},
        fingerprint="f" * 16,
        shards=len(shards),
        listing=listing.digest(),
    )
    write_manifest(out, manifest)
    text, sample = io.StringIO(), Counter[str]()
    read_records = overview.read_records

    def timed(folder: Storage, paths: Sequence[str]) -> dict[str, Commit]:
        before = time.perf_counter(), time.process_time()
        records = read_records(folder, paths)
        sample.update(time=time.perf_counter() - before[0], cpu=time.process_time() - before[1])  # type: ignore[call-overload]
        return records

    started, cpu = time.perf_counter(), time.process_time()
    with (
        peak_memory() as peak,
        contextlib.redirect_stdout(text),
        mock.patch.object(overview, "read_records", timed),
    ):
        jobs.status.main([out.url, "--json", "--storage-options", json.dumps(out.options)])
    whole, cpu = time.perf_counter() - started, time.process_time() - cpu
    facts = json.loads(text.getvalue())
    done = len(shards) - 1
    assert (facts["done"], facts["missing"]) == (done, 1)
    assert sum(facts["counts"].values()) == done * ROWS_PER_SHARD
    assert facts["counts"]["ok"] == done * (ROWS_PER_SHARD - 7)
    read = facts["sample"]["records"]
    sampled, sample_cpu = sample["time"], sample["cpu"]
    row(f"`diffseg status` on {where}: {done:,} records, of which {read:,} are read", f"{whole:.1f} s")
    row("CPU of this command", f"{cpu:.1f} s")
    row("of this the sample, whose size does not grow: time; CPU", f"{sampled:.1f} s; {sample_cpu:.1f} s")
    row("peak memory of `diffseg status`", f"{peak[0]:.0f} MB")
    shards_of_billions = BILLIONS * 10**9 // ROWS_PER_SHARD
    times = shards_of_billions / len(shards)
    projected, projected_cpu = (part + (all_ - part) * times for all_, part in ((whole, sampled), (cpu, sample_cpu)))
    row(
        f"{BILLIONS} billion images: `diffseg status`, with all but the sample in proportion: time; CPU",
        f"{projected:.0f} s; {projected_cpu:.0f} s",
    )


def main() -> int:
    """Print the table. An assertion fails if a shard was lost, duplicated or attempted twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=20_000, help="number of shards")
    parser.add_argument("--actors", type=int, default=100, help="number of workers")
    parser.add_argument("--seconds", type=float, default=1.0, help="time that a worker takes for a shard")
    parser.add_argument("--only-resume", action="store_true", help="measure only the resumed run and `status` on S3")
    options = parser.parse_args()
    print("| quantity | value |\n|---|---|")
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        source = f"{folder}/in/{{00000..{options.shards - 1:05d}}}.tar"
        shards = find_shards(source)
        if not options.only_resume:
            run_shards(source, Path(folder) / "out", options.shards, options.actors, options.seconds)
        with ObjectStore() as store:
            out = Storage(url=f"s3://{LABELS}/scale", options=store.options())
            resume(out, shards, "S3")
            show_status(out, shards, source, "S3")
    return 0


if __name__ == "__main__":
    sys.exit(main())
