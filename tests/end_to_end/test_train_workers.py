"""Several workers of Ray Train: they train the network of one worker, and a lost worker changes nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from object_store import LABELS, ObjectStore

import jobs.train
from diffseg.segmentation import BACKGROUND
from pipeline.training import on_ray

FLAGS = ("--target", "classes", "--size", "32", "--width", "8", "--steps", "6", "--save-every", "1")
PAUSED_STEP = 3

pytestmark = [
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


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
def two_workers(out: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return MODEL of an undisturbed training on two workers; read-only."""
    model = tmp_path_factory.mktemp("model")
    assert jobs.train.main([str(out), str(model), *FLAGS, "--workers", "2", "--batch-size", "2"]) == 0
    return model


def losses(metrics: bytes) -> list[float]:
    return [record["loss"] for record in json.loads(metrics)["history"]]


def test_two_workers_have_the_losses_of_one_with_the_same_images_in_each_step(
    out: Path, two_workers: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    assert jobs.train.main([str(out), str(one), *FLAGS, "--no-ray", "--batch-size", "4"]) == 0
    expected = losses((one / "metrics.json").read_bytes())
    assert losses((two_workers / "metrics.json").read_bytes()) == pytest.approx(expected, rel=1e-4)
    assert json.loads((two_workers / "metrics.json").read_text())["images"] == 24


def test_a_killed_worker_changes_neither_the_network_nor_its_losses(
    out: Path, two_workers: Path, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MODEL is on an S3 server. The worker of rank 1 pauses after a step, once, until it is killed."""
    diary, environment = tmp_path / "diary", object_store.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def worker(config: dict[str, Any]) -> None:
        import time

        from pipeline.training import on_ray
        from pipeline.training.loop import train
        from pipeline.training.recipes.workers import place

        os.environ.update(environment)  # a node has its own credentials

        def train_with_a_pause(*args: Any, on_record: Any, **options: Any) -> Any:
            def pause(record: Any) -> None:
                on_record(record)
                if place()[0] == 1:
                    with diary.open("a") as file:
                        file.write(f"{os.getpid()} {record['step']}\n")
                    while record["step"] == PAUSED_STEP and len({line.split()[0] for line in diary.open()}) == 1:
                        time.sleep(0.05)

            return train(*args, on_record=pause, **options)

        on_ray.train = train_with_a_pause
        on_ray._train_worker(config)

    monkeypatch.setattr(on_ray, "_train_worker", worker)
    url, ended = f"s3://{LABELS}/{tmp_path.name}/model", threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            lines = diary.read_text().splitlines() if diary.exists() else []
            if lines and lines[-1].endswith(f" {PAUSED_STEP}"):
                os.kill(int(lines[-1].split()[0]), signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert jobs.train.main([str(out), url, *FLAGS, "--workers", "2", "--batch-size", "2"]) == 0
    finally:
        ended.set()
        killer.join()
    steps = [tuple(map(int, line.split())) for line in diary.read_text().splitlines()]
    before, after = ([step for pid, step in steps if (pid == steps[0][0]) == first] for first in (True, False))
    assert before == [1, 2, 3]
    assert after in ([3, 4, 5, 6], [4, 5, 6]), "the training did not continue from its last checkpoint"
    object_store.download(LABELS, f"{tmp_path.name}/model", tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (two_workers / name).read_bytes()
    assert losses((tmp_path / "model/metrics.json").read_bytes()) == losses((two_workers / "metrics.json").read_bytes())
    assert not object_store.unfinished_uploads(LABELS, url)
