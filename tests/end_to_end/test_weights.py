"""Models on a real S3 server: one copy to a node, however many workers start there and whichever are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import Faults
from faulty_proxy import FaultyProxy
from object_store import PHOTOGRAPHS, ObjectStore
from runs import BOTH, DEADLINE, FAST, environment, masks_of
from warm import WarmCommand

from diffseg.model.layout import NEEDED, TINY, digests, fingerprint

WORKERS, MEGABYTES = int(os.environ.get("DIFFSEG_WORKERS", "6")), int(os.environ.get("DIFFSEG_MEGABYTES", "0"))
"""`make weights` sets 50, and so much more of weights."""
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
    """Of a process on a node that has no copy yet, and reaches the store through the proxy."""
    own = {"DIFFSEG_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    return environment() | uploaded.environment(endpoint=proxy.endpoint) | own


@pytest.fixture
def worker(variables: dict[str, str]) -> Iterator[Callable[[str], WarmCommand]]:
    """Starts what a worker does about its model; whatever happens, none of them outlives the test."""
    begun: list[WarmCommand] = []

    def begin(url: str = MODEL) -> WarmCommand:
        begun.append(WarmCommand("node_worker", url, variables=variables))
        return begun[-1]

    yield begin
    for command in begun:
        with contextlib.suppress(ValueError):  # it has ended
            killed(command)


def found(command: WarmCommand) -> dict[str, object]:
    done = command.ended(DEADLINE)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def killed(command: WarmCommand) -> None:
    command.process.kill()
    command.ended(DEADLINE)


def wait_while_running(command: WarmCommand, condition: Callable[[], object]) -> None:
    """Until the condition is met, which the command is to bring about."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert command.process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_of_a_node_read_one_copy(
    proxy: FaultyProxy, uploaded: ObjectStore, worker: Callable[[str], WarmCommand], tmp_path: Path
) -> None:
    name, folder = f"models/{WORKERS}", tmp_path / "more"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "more.fp16.safetensors").write_bytes(os.urandom(2**20) * MEGABYTES)
    for path in (TINY, folder):
        uploaded.upload(path, PHOTOGRAPHS, name)
    for number in (WORKERS, WORKERS if MEGABYTES else 1):  # on an empty node, and when they start anew
        started = time.perf_counter()
        answers = [found(command) for command in [worker(f"s3://{PHOTOGRAPHS}/{name}") for _ in range(number)]]
        seconds = time.perf_counter() - started
        assert len({(answer["folder"], answer["sha256"]) for answer in answers}) == 1
        gets = {what: times for what, times in proxy.asked.items() if what.startswith(f"GET /{PHOTOGRAPHS}/{name}/")}
        blocks = {what: -(-size // 2**24) for what, size in sizes(Path(str(answers[0]["folder"])), name).items()}
        assert gets == blocks, "each block of each file is asked for once"
        longest = max(float(str(answer["seconds"])) for answer in answers)
        print(f"{number} workers: {sum(gets.values())} GETs, {seconds:.1f} s in all, at most {longest:.1f} s for one")


def sizes(copy: Path, name: str) -> dict[str, int]:
    """Bytes of each file that is read, by the request for it; empty files need none."""
    files = {f"GET /{PHOTOGRAPHS}/{name}/{path}": (copy / path).stat().st_size for path in digests(copy, NEEDED)}
    return {what: size for what, size in files.items() if size}


def test_a_worker_that_is_killed_while_it_copies_is_replaced_by_the_next(
    proxy: FaultyProxy, worker: Callable[..., WarmCommand], tmp_path: Path
) -> None:
    proxy.set(Faults(trickle=1.0, trickle_seconds=0.5))
    first = worker()
    wait_while_running(first, lambda: proxy.asked[WEIGHTS])
    assert first.process.pid is not None
    os.kill(first.process.pid, signal.SIGSTOP)  # so that it gets no further before the second has come
    proxy.set(Faults())
    second = worker()
    (place,) = (tmp_path / "cache").iterdir()
    (half,) = (path for path in place.iterdir() if path.is_dir())
    assert (half / "unet" / "config.json").exists()
    wait_while_running(second, lambda: has_lock_waiter(place / "lock"))
    killed(first)
    assert found(second)["sha256"] == fingerprint(TINY)
    assert proxy.asked[WEIGHTS] == 2
    assert sorted(path.name for path in place.iterdir()) == sorted(["lock", half.name])


def has_lock_waiter(lock: Path) -> bool:
    """Whether a process waits for the lock of this file, as Linux tells of all locks."""
    return any(
        "->" in line and f":{lock.stat().st_ino} " in line for line in Path("/proc/locks").read_text().splitlines()
    )


def test_a_copy_survives_faults_of_the_store(proxy: FaultyProxy, worker: Callable[..., WarmCommand]) -> None:
    proxy.set(Faults(slow_down=0.1, error=0.1, reset=0.1, lost_answer=0.1, reset_body=0.3))
    assert found(worker())["sha256"] == fingerprint(TINY)
    assert sum(proxy.counts[fault] for fault in ("slow_down", "error", "reset", "lost_answer", "reset_body")) > 3


def test_actors_label_as_with_a_local_model(
    scene_tars: Path, labelled: Path, proxy: FaultyProxy, variables: dict[str, str], tmp_path: Path
) -> None:
    def label(*flags: str) -> str:
        line = ("jobs.label", scene_tars, tmp_path / "out", *FAST, *BOTH, *flags)
        done = WarmCommand(*line, variables=variables).ended(DEADLINE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "5 of 5 shards done; 20 images" in label("--model", MODEL, "--address", "local", "--workers", "1")
    assert proxy.asked[WEIGHTS] == 1
    expected, masks = masks_of(labelled), masks_of(tmp_path / "out")
    assert masks.keys() == expected.keys()
    assert all(np.array_equal(masks[key], expected[key]) for key in expected)
    run = json.loads((tmp_path / "out" / "run.json").read_bytes())
    before = json.loads((labelled / "run.json").read_bytes())
    assert run["settings"]["model"] == MODEL
    assert (run["model_sha256"], run["fingerprint"]) == (before["model_sha256"], before["fingerprint"])
    assert "5 of 5 shards done, 5 of them before" in label("--model", "tiny", "--no-ray")
