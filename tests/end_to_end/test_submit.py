"""Jobs submitted over HTTP to a Ray with tokens on, data in a store and nothing shared else.

The nodes' own `jobs`, `pipeline` and `diffseg` cannot be imported: what runs there is what was uploaded. The store's
credentials are in the nodes' environment only, the cluster's token in the submitter's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from clusters import Cluster, Node, short_folder, title
from object_store import LABELS, PHOTOGRAPHS, ObjectStore
from PIL import Image
from ray.job_submission import JobStatus, JobSubmissionClient
from relay import Relay
from runs import BOTH, DEADLINE, differences, environment, rows_of

import jobs.label
import jobs.shard
import jobs.verify
from diffseg.tiny.scenes.scenes import generate_scene
from jobs.submission.log import STOPPED, follow

# Ray's own call of aiohttp, where its client is used in this process.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")

CHECKOUT = Path(__file__).parents[2]
SHARDS, SAMPLES = 24, 2
SLOW = ("--device", "cpu", "--resolution", "128", "--tau", "0.05")
"""A third of a second a shard, so that a blow falls within one."""


class Follower:
    """A command of the submitter's machine, in a process of its own, and what it says."""

    def __init__(self, cluster: Cluster, folder: Path, *words: str | Path, **variables: str) -> None:
        self.output = folder / "follower.log"
        # HOME: nobody's token is there
        token = {"RAY_AUTH_TOKEN": cluster.environment["RAY_AUTH_TOKEN"], "HOME": str(folder)}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)],
                cwd=folder,
                env=environment() | token | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.output.read_text()

    def ended(self) -> int:
        try:
            return self.process.wait(DEADLINE / 3)
        finally:
            self.process.kill()

    def interrupted(self) -> int:
        """Ctrl-C, again as a person would where it fell into a finalizer, in which Python drops it."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(10)
        return self.ended()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for the moment; a command that ends before it fails the test."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.03)


@pytest.fixture(scope="module")
def cluster(object_store: ObjectStore, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    needs_workers = any(item.get_closest_marker("cluster") for item in request.session.items)
    with short_folder() as folder:
        for name in ("jobs", "pipeline", "diffseg"):
            (folder / "decoy" / name).mkdir(parents=True)
            (folder / "decoy" / name / "__init__.py").write_text("raise ImportError('the image has another version')")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PYTHONPATH": str(folder / "decoy"), "PATH": path} | object_store.environment()
        cluster = Cluster(folder / "c", job_server=True, variables=own)
        for _ in range(2 if needs_workers else 0):
            cluster.join()
        for node in cluster.nodes:
            node.wait()
        yield cluster
        cluster.kill()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> JobSubmissionClient:
    """Of a third machine, which looks at jobs and stops them."""
    return JobSubmissionClient(
        cluster.dashboard, headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    )


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore) -> Path:
    """Shards of generated scenes, in the store at `submit` too."""
    images, folder = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("tars")
    for number in range(SHARDS * SAMPLES):
        Image.fromarray(generate_scene(number, 96).image).save(images / f"{number:04d}.png")
    assert jobs.shard.main([str(images), str(folder), "--samples-per-shard", str(SAMPLES)]) == 0
    object_store.upload(folder, PHOTOGRAPHS, "submit")
    return folder


def labelling(node: Node) -> list[psutil.Process]:
    return [process for process in node.workers() if title(process).startswith("ray::LabelWorker.label")]


@contextlib.contextmanager
def idle(node: Node) -> Iterator[Callable[[], bool]]:
    """A function that suspends whatever labels on a node, until the block ends; it is always true."""
    suspended = set()

    def suspend() -> bool:
        for process in labelling(node):
            process.suspend()
            suspended.add(process)
        return True

    try:
        yield suspend
    finally:
        for process in suspended:
            process.resume()


@pytest.mark.cluster
def test_a_job_that_is_stopped_goes_on_as_another_which_loses_a_node_and_gets_one(
    cluster: Cluster, client: JobSubmissionClient, tars: Path, object_store: ObjectStore, tmp_path: Path
) -> None:
    source, out = f"s3://{PHOTOGRAPHS}/submit", f"s3://{LABELS}/submit"
    line = [source, out, "--workers", "2", *SLOW, *BOTH]

    def committed() -> int:
        return len(object_store.keys(LABELS, "submit/commits/"))

    # The plain way of the documentation.
    environment = {"excludes": ["/tests"], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    ray = ["ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard, "--working-dir", CHECKOUT]
    words = [*ray, "--runtime-env-json", json.dumps(environment), "--", "python", "-m", "jobs.label", *line]
    plain = Follower(cluster, tmp_path, *words, RAY_AUTH_MODE="token")
    plain.until(committed)
    (job,) = (job for job in client.list_jobs() if job.status == JobStatus.RUNNING and job.submission_id)
    client.stop_job(job.submission_id)
    assert plain.ended() == 0, plain.said()
    assert "was stopped" in plain.said()
    done = committed()
    assert 0 < done < SHARDS

    submitted = Follower(
        cluster, tmp_path, "jobs.submit", *line, "--address", cluster.dashboard, "--working-dir", CHECKOUT
    )
    _, lost, other = cluster.nodes
    with idle(other) as idling:  # so that there is work left for the node that comes
        submitted.until(lambda: idling() and labelling(lost))
        lost.kill()
        fresh = cluster.join()
        submitted.until(lambda: idling() and labelling(fresh))
    assert submitted.ended() == 0, submitted.said()
    before = re.search(rf"{SHARDS} of {SHARDS} shards done, (\d+) of them before", submitted.said())
    assert before, submitted.said()
    assert done <= int(before[1]) < SHARDS
    assert f"{CHECKOUT}: " in submitted.said(), "how much was uploaded"
    assert "sdk.py" not in submitted.said(), "Ray's client tells of every connection"

    # A job that fails has its own exit code: this one is refused there, where OUT is looked at.
    other_settings = ["--tau", "0.5", "--address", cluster.dashboard, "--working-dir", CHECKOUT]
    refused = Follower(cluster, tmp_path, "jobs.submit", *line, *other_settings)

    where = ["--storage-options", json.dumps(object_store.options())]
    assert jobs.verify.main([out, *where]) == 0
    object_store.download(LABELS, "submit", tmp_path / "out")
    undisturbed = tmp_path / "undisturbed"
    assert jobs.label.main([str(tars), str(undisturbed), "--no-ray", *SLOW, *BOTH]) == 0
    assert differences(tmp_path / "out", undisturbed) == ["run.json"], "which names SRC"
    assert len(rows_of(tmp_path / "out")) == SHARDS * SAMPLES

    assert refused.ended() == 2, refused.said()
    assert "tau" in refused.said()
    assert "Traceback" not in refused.said()


def test_neither_detaching_nor_ctrl_c_nor_a_broken_connection_is_a_job_s_end(
    cluster: Cluster,
    client: JobSubmissionClient,
    tars: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    nothing = [f"s3://{PHOTOGRAPHS}/nothing-here", f"s3://{LABELS}/none", "--env", "PYTHONPATH", "--detach"]
    detached = Follower(cluster, tmp_path, "jobs.submit", *nothing, "--address", cluster.dashboard)
    assert detached.ended() == 0, detached.said()
    id_of_detached = next(word for word in detached.said().split() if word.startswith("raysubmit_"))

    # It waits for a GPU. The package is what the image would have, and a variable says where.
    line = [f"s3://{PHOTOGRAPHS}/submit", f"s3://{LABELS}/waiting", "--device", "cuda", "--workers", "1"]
    started = "Running entrypoint for job"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else a shell's child may ignore it
    try:
        with Relay(cluster.dashboard) as relay:
            flags = ["--env", "PYTHONPATH", "--address", relay.url]
            follower = Follower(cluster, tmp_path, "jobs.submit", *line, *flags)
            follower.until(lambda: started in follower.said())
            assert relay.break_connections()
            follower.until(relay.break_connections)  # it is there again
            follower.until(relay.break_connections)
            assert follower.interrupted() == 130, follower.said()
    finally:
        signal.signal(signal.SIGINT, before)
    said = follower.said()
    assert said.count(started) == 1, "nothing is told twice"
    assert "the job continues" in said
    stop = shlex.split(next(line for line in said.splitlines() if line.startswith("stop it:")).partition(":")[2])
    assert stop[:4] == ["RAY_AUTH_MODE=token", "ray", "job", "stop"]
    job = stop[-1]
    assert client.get_job_status(job) == JobStatus.RUNNING
    assert client.stop_job(job)
    assert follow(client, job, "") == STOPPED
    assert started in capfd.readouterr().out
    assert follow(client, id_of_detached, "") == 2


@pytest.mark.parametrize(
    "variables", [{"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_MODE": "disabled"}]
)
def test_without_the_token_there_is_no_job(cluster: Cluster, tmp_path: Path, variables: dict[str, str]) -> None:
    words = ["jobs.submit", "s3://a/b", "s3://c/d", "--address", cluster.dashboard]
    refused = Follower(cluster, tmp_path, *words, **variables)
    assert refused.ended() == 2
    assert "wants the cluster's token" in refused.said()
    assert "Traceback" not in refused.said()
    assert len(refused.said().splitlines()) == 1


def test_a_server_that_is_not_there(cluster: Cluster, tmp_path: Path, free_port: int) -> None:
    words = ["jobs.submit", "s3://a/b", "s3://c/d", "--address", f"http://127.0.0.1:{free_port}"]
    failed = Follower(cluster, tmp_path, *words)
    assert failed.ended() == 1
    assert "does not answer" in failed.said()
    assert len(failed.said().splitlines()) == 1
