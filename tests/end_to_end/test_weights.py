"""Models on a real S3 server: a node copies the weights once, whatever workers start there and are killed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_proxy import FaultyProxy
from object_store import PHOTOGRAPHS, ObjectStore
from runs import BOTH, DEADLINE, FAST, environment, masks_of
from store_faults import StoreFaults
from warm import WarmCommand

from diffseg.model.files import CHECKPOINT_FILES, digests, fingerprint
from diffseg.model.layout import TINY

MODEL = f"s3://{PHOTOGRAPHS}/models/tiny"
WEIGHTS = f"GET /{PHOTOGRAPHS}/models/tiny/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def uploaded(object_store: ObjectStore) -> ObjectStore:
    object_store.upload(TINY, PHOTOGRAPHS, "models/tiny")
    return object_store


@pytest.fixture
def proxy(uploaded: ObjectStore) -> Iterator[FaultyProxy]:
    with FaultyProxy(uploaded.endpoint, seed=1) as between:
        yield between


@pytest.fixture
def variables(proxy: FaultyProxy, uploaded: ObjectStore, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a node that has no copy yet, and reaches the store through the proxy."""
    node = {"DIFFSEG_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    return environment() | uploaded.environment(endpoint=proxy.endpoint) | node


@pytest.fixture
def worker(variables: dict[str, str]) -> Iterator[Callable[[str], WarmCommand]]:
    """Return a function that starts what a worker does to load its model. At the end, kill those that still run."""
    started: list[WarmCommand] = []

    def start(url: str = MODEL) -> WarmCommand:
        started.append(WarmCommand("node_worker", url, variables=variables))
        return started[-1]

    yield start
    for command in started:
        with contextlib.suppress(ValueError):  # the command has ended
            kill(command)


def answer_of(command: WarmCommand) -> dict[str, object]:
    """Wait for a worker and return what it printed."""
    finished = command.wait(DEADLINE)
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout))


def kill(command: WarmCommand) -> None:
    command.process.kill()
    command.wait(DEADLINE)


def wait_while_running(command: WarmCommand, condition: Callable[[], object]) -> None:
    """Wait for a condition that a running command brings about."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert command.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("workers", "megabytes"), [(6, 0), pytest.param(50, 500, marks=pytest.mark.weights)], ids=["few", "many"]
)
def test_workers_of_a_node_read_one_copy(
    workers: int,
    megabytes: int,
    proxy: FaultyProxy,
    uploaded: ObjectStore,
    worker: Callable[[str], WarmCommand],
    tmp_path: Path,
) -> None:
    name, folder = f"models/{workers}", tmp_path / "more"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors").write_bytes(os.urandom(2**20) * megabytes)
    for path in (TINY, folder):
        uploaded.upload(path, PHOTOGRAPHS, name)
    for number in (workers, workers if megabytes else 1):  # on an empty node, and when workers start again
        started = time.perf_counter()
        answers = [answer_of(command) for command in [worker(f"s3://{PHOTOGRAPHS}/{name}") for _ in range(number)]]
        seconds = time.perf_counter() - started
        assert len({(answer["folder"], answer["sha256"]) for answer in answers}) == 1
        prefix = f"GET /{PHOTOGRAPHS}/{name}/"
        gets = {request: times for request, times in proxy.requests.items() if request.startswith(prefix)}
        blocks = {request: -(-size // 2**24) for request, size in sizes(Path(str(answers[0]["folder"])), name).items()}
        assert gets == blocks, "each block of each file is requested once"
        longest = max(float(str(answer["seconds"])) for answer in answers)
        print(f"{number} workers: {sum(gets.values())} GETs, {seconds:.1f} s in all, at most {longest:.1f} s for one")


def sizes(copy: Path, name: str) -> dict[str, int]:
    """Return the bytes of each file of a copy by the request for it. Empty files are not requested."""
    files = {
        f"GET /{PHOTOGRAPHS}/{name}/{path}": (copy / path).stat().st_size for path in digests(copy, CHECKPOINT_FILES)
    }
    return {request: size for request, size in files.items() if size}


def test_a_worker_that_is_killed_while_it_copies_is_replaced_by_the_next(
    proxy: FaultyProxy, worker: Callable[..., WarmCommand], tmp_path: Path
) -> None:
    proxy.hold(WEIGHTS)
    first = worker()
    wait_while_running(first, lambda: proxy.held)
    second = worker()
    (cached,) = (tmp_path / "cache").iterdir()
    (incomplete,) = (path for path in cached.iterdir() if path.is_dir())
    assert (incomplete / "unet" / "config.json").exists()
    wait_while_running(second, lambda: has_lock_waiter(cached / "lock"))
    kill(first)
    proxy.release()
    assert answer_of(second)["sha256"] == fingerprint(TINY)
    assert proxy.requests[WEIGHTS] == 2
    assert sorted(path.name for path in cached.iterdir()) == sorted(["lock", incomplete.name])


def has_lock_waiter(lock: Path) -> bool:
    """Return True if a process waits for the lock of a file, according to Linux's list of all locks."""
    return any(
        "->" in line and f":{lock.stat().st_ino} " in line for line in Path("/proc/locks").read_text().splitlines()
    )


def test_a_copy_survives_faults_of_the_store(proxy: FaultyProxy, worker: Callable[..., WarmCommand]) -> None:
    proxy.inject(StoreFaults(slow_down=0.1, error=0.1, reset=0.1, lost_answer=0.1, reset_body=0.3))
    assert answer_of(worker())["sha256"] == fingerprint(TINY)
    assert sum(proxy.counts[fault] for fault in ("slow_down", "error", "reset", "lost_answer", "reset_body")) > 3


def test_actors_label_as_with_a_local_model(
    scene_tars: Path, labelled: Path, proxy: FaultyProxy, variables: dict[str, str], tmp_path: Path
) -> None:
    def label(*flags: str) -> str:
        line = ("jobs.label", scene_tars, tmp_path / "out", *FAST, *BOTH, *flags)
        finished = WarmCommand(*line, variables=variables).wait(DEADLINE)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    assert "5 of 5 shards done; 20 images" in label("--model", MODEL, "--address", "local", "--workers", "1")
    assert proxy.requests[WEIGHTS] == 1
    expected, masks = masks_of(labelled), masks_of(tmp_path / "out")
    assert masks.keys() == expected.keys()
    assert all(np.array_equal(masks[key], expected[key]) for key in expected)
    run = json.loads((tmp_path / "out" / "run.json").read_bytes())
    before = json.loads((labelled / "run.json").read_bytes())
    assert run["settings"]["model"] == MODEL
    assert (run["model_sha256"], run["fingerprint"]) == (before["model_sha256"], before["fingerprint"])
    assert "5 of 5 shards done, 5 of them before" in label("--model", "tiny", "--no-ray")
