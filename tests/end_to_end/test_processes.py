"""What goes from process to process: little, and a store is reached from wherever it is asked."""

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
        # Not after a fork: a child that lets go of connections takes them from its parent, whose next request is made
        # again at its deadline, a minute later.
        if sys.argv[1] == "spawn":
            use(sys.argv[2])
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_store_that_was_used_is_used_in_child_processes_as_well(
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
    assert len(object_store.keys(LABELS, tmp_path.name)) > 1, "a child has written"


class Weighed(LabelWorker):
    """Notes the size of all that a driver sends to it and gets from it: with actors, what passes through Ray."""

    sizes: ClassVar[dict[str, list[int]]] = {}

    def load(self, job: Job) -> WorkerReport:
        report = super().load(job)
        self.note("job", job)
        self.note("report", report)
        return report

    def label(self, shard: Shard, attempt: int) -> Commit:
        commit = super().label(shard, attempt)
        self.note("shard", shard)
        self.note("commit", commit)
        self.note("progress", self.progress())
        return commit

    def note(self, name: str, value: object) -> None:
        self.sizes.setdefault(name, []).append(len(pickle.dumps(value)))


@pytest.mark.parametrize(("kind", "most"), [("tars", 500), ("images", 1000)])
def test_no_pixels_pass_through_ray(
    kind: str, most: int, scene_tars: Path, scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Weighed, "sizes", {})
    label_run(
        str(scene_tars if kind == "tars" else scene_folder),
        str(tmp_path),
        settings=LabelSettings(method=settings_of(resolution=64), include_image=True, format=BOTH[1]),
        worker=WorkerSettings(device="cpu"),
        run=RunSettings(no_ray=True),
        worker_class=Weighed,
    )
    largest = {name: max(sizes) for name, sizes in Weighed.sizes.items()}
    assert largest.pop("shard") < most  # in a folder of images it names its files, 20 here
    assert set(largest) == {"job", "report", "commit", "progress"}
    assert max(largest.values()) < 4000
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) > 100_000
