"""Several workers of Ray Train train the network of one worker, and a killed worker does not change it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from object_store import LABELS, ObjectStore

import jobs.train
from diffseg.segmentation import BACKGROUND
from jobs.common import INTERRUPTED
from pipeline.training import on_ray

FLAGS = ("--target", "classes", "--size", "32", "--width", "8", "--steps", "6", "--save-every", "1")
ONE_WORKER = ("--no-ray", "--batch-size", "4")
TWO_WORKERS = ("--workers", "2", "--batch-size", "2")
PAUSED_STEP = 3

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run over ten images whose light part, a class of its own, is smaller in each than in the last."""
    folder = tmp_path_factory.mktemp("workers")
    labels: dict[str, np.ndarray | None] = {}
    rng = np.random.default_rng(0)
    for number in range(10):
        segments = np.zeros((32, 32), np.uint16)
        segments[:, 3 * number + 2 :] = 1
        noise = rng.integers(60, size=(32, 32, 3))
        write_png(folder / "images" / f"{number}.png", (40 + 150 * segments[..., None] + noise).astype(np.uint8))
        labels[f"{number}.png"] = segments
    names = dict.fromkeys(labels, (BACKGROUND, "box"))
    write_run(folder / "out", labels, source=folder / "images", names=names, vocabulary=("box",))
    return folder / "out"


@pytest.fixture(scope="module")
def one_worker(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return MODEL of an undisturbed training in this process, with the same images in each step; read-only."""
    model = tmp_path_factory.mktemp("one-worker")
    assert jobs.train.main([str(out), str(model), *FLAGS, *ONE_WORKER]) == 0
    return model


@pytest.fixture(scope="module")
def killed(out: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    """Train on two workers, and kill the worker of rank 1 once, after a step.

    Returns:
        MODEL, read-only, and for each step of rank 1 the id of its process and the number of the step.
    """
    folder = tmp_path_factory.mktemp("killed")
    steps_file = folder / "steps"

    def worker(config: dict[str, Any]) -> None:
        import time

        from pipeline.training import on_ray
        from pipeline.training.loop import train
        from pipeline.training.recipes.workers import place

        def train_with_a_pause(*args: Any, on_record: Any, **options: Any) -> Any:
            def pause(record: Any) -> None:
                on_record(record)
                if place()[0] == 1:
                    with steps_file.open("a") as file:
                        file.write(f"{os.getpid()} {record['step']}\n")
                    while record["step"] == PAUSED_STEP and len({line.split()[0] for line in steps_file.open()}) == 1:
                        time.sleep(0.05)  # until it is killed

            return train(*args, on_record=pause, **options)

        vars(on_ray)["train"] = train_with_a_pause
        on_ray._train_worker(config)

    with pytest.MonkeyPatch.context() as patch, killing(steps_file):
        patch.setattr(on_ray, "_train_worker", worker)
        assert jobs.train.main([str(out), str(folder / "model"), *FLAGS, *TWO_WORKERS]) == 0
    lines = [line.split() for line in steps_file.read_text().splitlines()]
    return folder / "model", [(int(process), int(step)) for process, step in lines]


@contextmanager
def killing(steps_file: Path) -> Iterator[None]:
    """While the block lasts, kill the process that has written the line of `PAUSED_STEP`, once."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            lines = steps_file.read_text().splitlines() if steps_file.exists() else []
            if lines and lines[-1].endswith(f" {PAUSED_STEP}"):
                os.kill(int(lines[-1].split()[0]), signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def losses(model: Path) -> list[float]:
    return [record["loss"] for record in json.loads((model / "metrics.json").read_text())["history"]]


def test_the_training_continues_from_its_last_checkpoint(killed: tuple[Path, list[tuple[int, int]]]) -> None:
    model, steps = killed
    first = steps[0][0]
    assert [step for process, step in steps if process == first] == [1, 2, PAUSED_STEP]
    assert [step for process, step in steps if process != first] in ([3, 4, 5, 6], [4, 5, 6])
    assert {"model.safetensors", "config.json", "metrics.json"} <= {path.name for path in model.iterdir()}


def test_two_workers_have_the_losses_of_one_with_the_same_images_in_each_step_although_one_is_killed(
    one_worker: Path, killed: tuple[Path, list[tuple[int, int]]]
) -> None:
    assert losses(killed[0]) == pytest.approx(losses(one_worker), rel=1e-4)
    assert json.loads((killed[0] / "metrics.json").read_text())["images"] == 24


def test_a_training_on_s3_continues_from_its_checkpoint_there(
    out: Path, one_worker: Path, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = f"s3://{LABELS}/{tmp_path.name}/model", json.dumps(object_store.options())

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.save_network", stop)
        assert jobs.train.main([str(out), url, *FLAGS, *ONE_WORKER, "--storage-options", options]) == INTERRUPTED
    names = {key.rsplit("/", 1)[1] for key in object_store.keys(LABELS, f"{tmp_path.name}/model")}
    assert names == {"train.json", "checkpoint.safetensors"}
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.descend", stop)  # no step is left
        assert jobs.train.main([str(out), url, *FLAGS, *ONE_WORKER, "--storage-options", options]) == 0
    object_store.download(LABELS, f"{tmp_path.name}/model", tmp_path / "downloaded")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "downloaded" / name).read_bytes() == (one_worker / name).read_bytes()
    assert not object_store.unfinished_uploads(LABELS, url)


@pytest.mark.cluster
def test_a_killed_worker_leaves_the_bytes_of_an_undisturbed_training(
    out: Path, killed: tuple[Path, list[tuple[int, int]]], tmp_path: Path
) -> None:
    assert jobs.train.main([str(out), str(tmp_path), *FLAGS, *TWO_WORKERS]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (killed[0] / name).read_bytes() == (tmp_path / name).read_bytes()
    assert losses(killed[0]) == losses(tmp_path)
