"""References that are learned with interruptions, or by several actors, have the bytes of an undisturbed call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from reference_runs import BY_LABELS, planted_images, write_feature_run

from pipeline.executor.collect import collect
from pipeline.output.manifest import require_manifest
from pipeline.references.learn import in_this_process, learn_references
from pipeline.references.retrieve import ReferenceSettings
from pipeline.references.state import REFERENCES, REPORT, RETRIEVAL
from pipeline.references.worker import ReferenceJob, ReferenceTask, ReferenceWorker
from pipeline.settings import RunSettings
from pipeline.storage import Storage

KILLED_AT_RENAME = Path(__file__).parents[2] / "killed_at_rename.py"
FILES = (REFERENCES, RETRIEVAL, REPORT)
Tasks = Sequence[ReferenceTask]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """OUT of a run of six label shards; an image of the first and one of the second have no labels."""
    images = planted_images()
    for key in ("001.png", "006.png"):
        image = images[key]
        assert image is not None
        images[key] = image._replace(fields={})
    write_feature_run(tmp_path / "out", images)
    return tmp_path / "out"


def learn(out: Path, state: Path, by: Any = in_this_process, **settings: Any) -> list[bytes]:
    """Learn references, and return the bytes of the files."""
    storage = Storage(url=str(out))
    values = {"naming": BY_LABELS, "contexts": 1, "centroids": 2, "background": 3, **settings}
    chosen = ReferenceSettings(**values)
    learn_references(storage, require_manifest(storage), chosen, Storage(url=str(state)), collect=by)
    assert not Path(f"{state}.parts").exists(), "the files of label shards are deleted"
    return [(state / name).read_bytes() for name in FILES]


def stopping_after(count: int) -> Callable[..., Iterable[str]]:
    """Return a function that does tasks like `in_this_process`, and fails after the first `count` of them."""

    def tasks_until(worker: type[ReferenceWorker], job: ReferenceJob, tasks: Tasks) -> Iterable[str]:
        yield from in_this_process(worker, job, tasks[:count])
        if len(tasks) > count:
            raise OSError("planted stop")

    return tasks_until


def test_a_killed_command_continues_to_the_same_bytes(out: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    line = [sys.executable, str(KILLED_AT_RENAME), "*.parts/*.safetensors", "3", "jobs.fit", "references"]
    line += [str(out), str(state), "--names", "cat,dog,sky", "--labels-field", "labels", "--contexts", "1"]
    line += ["--centroids", "2", "--background", "3", "--no-ray"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(line, env=environment, timeout=300, check=False).returncode == -signal.SIGKILL
    kept = sorted(path.name for path in Path(f"{state}.parts").iterdir() if path.suffix in (".json", ".safetensors"))
    assert kept == sorted([*(f"{n:05}.json" for n in range(6)), "00000.safetensors", "00001.safetensors"])
    done: list[ReferenceTask] = []

    def recorded(worker: type[ReferenceWorker], job: ReferenceJob, tasks: Tasks) -> Iterable[str]:
        done.extend(tasks)
        return in_this_process(worker, job, tasks)

    assert learn(out, state, recorded) == learn(out, tmp_path / "undisturbed")
    assert [task.shard for task in done] == [f"{number:05}" for number in range(2, 6)], "the others are not repeated"


def test_stops_damaged_files_and_files_of_other_settings_change_no_byte(out: Path, tmp_path: Path) -> None:
    state, parts = tmp_path / "state", Path(f"{tmp_path / 'state'}.parts")
    for by, images in ((stopping_after(4), 2), (stopping_after(2), 50), (stopping_after(3), 50)):
        with pytest.raises(OSError, match="planted stop"):
            learn(out, state, by, images=images)
    assert len([*parts.iterdir()]) == 5
    (parts / "00000.json").write_bytes((parts / "00000.json").read_bytes()[:-9])
    with pytest.raises(OSError, match="planted stop"):
        learn(out, state, stopping_after(2))
    (parts / "00000.json").unlink()
    assert learn(out, state) == learn(out, tmp_path / "undisturbed")


@pytest.mark.usefixtures("local_ray")
def test_ray_actors_learn_the_same_bytes(out: Path, tmp_path: Path) -> None:
    remote = learn(out, tmp_path / "remote", partial(collect, run=RunSettings(), workers=2))
    assert remote == learn(out, tmp_path / "local")


@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_dies_is_started_again_and_its_task_repeated(tmp_path: Path) -> None:
    class DyingWorker:
        def __init__(self, job: str) -> None:
            self.folder = job

        def collect(self, task: str) -> str:
            marker = f"{self.folder}/{task}"
            if task == "b" and not os.path.exists(marker):
                with open(marker, "w"):
                    os.kill(os.getpid(), signal.SIGKILL)
            return task

    run = RunSettings()
    assert sorted(collect(DyingWorker, str(tmp_path), ["a", "b", "c"], run=run)) == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
