"""Little data passes between processes, and each process can use a store."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from object_store import LABELS, ObjectStore
from runs import BOTH, DEADLINE, environment

from diffseg.settings import settings_of
from pipeline.executor.driver import label_run
from pipeline.executor.protocol import Job, WorkerReport
from pipeline.executor.worker import LabelWorker
from pipeline.output.commit import Commit
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings

USES_A_STORE = """
import json, multiprocessing, os, sys
from pipeline.storage import Storage

def use(url):
    storage = Storage(url=url, options=json.loads(os.environ["OPTIONS"]))
    storage.write_bytes(f"by-{multiprocessing.current_process().name}", b"x" * 100_000)
    for path, size in storage.files():
        assert len(storage.read_bytes(path)) == size == 100_000

if __name__ == "__main__":
    use(sys.argv[2])
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        pool.map_async(use, [sys.argv[2]] * 2).get(120)
        # Not after a fork: a child that closes its connections closes them for the parent, whose next request would be
        # retried only at its deadline, a minute later.
        if sys.argv[1] == "spawn":
            use(sys.argv[2])
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_store_can_be_used_in_child_processes_of_a_process_that_used_it(
    how: str, object_store: ObjectStore, tmp_path: Path
) -> None:
    script = tmp_path / "uses.py"
    script.write_text(USES_A_STORE)
    url = f"s3://{LABELS}/{tmp_path.name}"
    variables = environment() | {"OPTIONS": json.dumps(object_store.options())}
    done = subprocess.run(
        [sys.executable, str(script), how, url],
        env=variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "MainProcess" in str(object_store.keys(LABELS, tmp_path.name))
    assert len(object_store.keys(LABELS, tmp_path.name)) > 1, "a child wrote a file"


class MeasuredWorker(LabelWorker):
    """A worker that records the pickled size of everything that would pass between it and the driver through Ray."""

    sizes: ClassVar[dict[str, list[int]]] = {}

    def load(self, job: Job) -> WorkerReport:
        report = super().load(job)
        self.record("job", job)
        self.record("report", report)
        return report

    def label(self, shard: Shard, attempt: int) -> Commit:
        commit = super().label(shard, attempt)
        self.record("shard", shard)
        self.record("commit", commit)
        self.record("progress", self.progress())
        return commit

    def record(self, name: str, value: object) -> None:
        self.sizes.setdefault(name, []).append(len(pickle.dumps(value)))


@pytest.mark.parametrize(("kind", "max_bytes"), [("tars", 500), ("images", 1000)])
def test_no_pixels_pass_through_ray(
    kind: str, max_bytes: int, scene_tars: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeasuredWorker, "sizes", {})
    label_run(
        str(scene_tars if kind == "tars" else scene_folder),
        str(tmp_path),
        settings=LabelSettings(method=settings_of(resolution=64), include_image=True, format=BOTH[1]),
        worker=WorkerSettings(device="cpu"),
        run=RunSettings(no_ray=True),
        worker_class=MeasuredWorker,
    )
    largest = {name: max(sizes) for name, sizes in MeasuredWorker.sizes.items()}
    assert largest.pop("shard") < max_bytes  # a shard of image files names its files, 20 here
    assert set(largest) == {"job", "report", "commit", "progress"}
    assert max(largest.values()) < 4000
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) > 100_000
