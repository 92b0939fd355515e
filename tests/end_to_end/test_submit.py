"""Jobs that are submitted over HTTP to a Ray with token authentication, with their data in a store.

The packages `jobs`, `pipeline` and `diffseg` of the nodes cannot be imported, so what runs there was uploaded. The
credentials of the store are only in the environment of the nodes, and the cluster's token only in the submitter's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters import Cluster, connected, short_folder
from faulty_proxy import FaultyProxy
from object_store import LABELS, PHOTOGRAPHS, ObjectStore
from PIL import Image
from ray.job_submission import JobStatus, JobSubmissionClient
from relay import Relay
from runs import BOTH, DEADLINE, FAST, environment, label_differences, rows_of

import jobs.label
import jobs.shard
import jobs.verify
from diffseg.tiny.scenes.scenes import generate_scene
from jobs.submission.log import STOPPED, follow

# Ray's client, which runs in this process, calls aiohttp in this way.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")

CHECKOUT = Path(__file__).parents[2]
SHARDS, SAMPLES = 6, 2
HELD = f"GET /{PHOTOGRAPHS}/submit/00000[2-5].tar"
"""All shards but the first two: while their requests are held, two workers label and cannot finish."""


class Submission:
    """A command on the submitter's machine, in another process, and its output."""

    def __init__(self, cluster: Cluster, folder: Path, *words: str | Path, **variables: str) -> None:
        self._log = folder / "submission.log"
        token = {"RAY_AUTH_TOKEN": cluster.environment["RAY_AUTH_TOKEN"], "HOME": str(folder)}  # a HOME without a token
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)],
                cwd=folder,
                env=environment() | token | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(DEADLINE / 3)
        finally:
            self.process.kill()

    def interrupt(self) -> int:
        """Send SIGINT until the command ends: Python drops one that arrives in a finalizer."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(10)
        return self.wait()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. A command that ends before fails the test."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.03)


@pytest.fixture(scope="module")
def proxy(object_store: ObjectStore) -> Iterator[FaultyProxy]:
    """The way from the cluster to the store."""
    with FaultyProxy(object_store.endpoint) as between:
        yield between


@pytest.fixture(scope="module")
def cluster(object_store: ObjectStore, proxy: FaultyProxy, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    needs_workers = any(item.get_closest_marker("cluster") for item in request.session.items)
    with short_folder() as folder:
        for name in ("jobs", "pipeline", "diffseg"):
            (folder / "decoy" / name).mkdir(parents=True)
            (folder / "decoy" / name / "__init__.py").write_text("raise ImportError('the image has another version')")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        image = {"PYTHONPATH": str(folder / "decoy"), "PATH": path}
        variables = image | object_store.environment(endpoint=proxy.endpoint)
        cluster = Cluster(folder / "c", job_server=True, variables=variables)
        for _ in range(2 if needs_workers else 0):
            cluster.join()
        for node in cluster.nodes:
            node.wait()
        yield cluster
        cluster.kill()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> JobSubmissionClient:
    """Return a client on a third machine, which lists jobs and stops them."""
    return JobSubmissionClient(
        cluster.dashboard, headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    )


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore) -> Path:
    """Write shards of generated scenes, and upload them to `submit` in the store."""
    images, folder = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("tars")
    for number in range(SHARDS * SAMPLES):
        Image.fromarray(generate_scene(number, 96).image).save(images / f"{number:04d}.png")
    assert jobs.shard.main([str(images), str(folder), "--samples-per-shard", str(SAMPLES)]) == 0
    object_store.upload(folder, PHOTOGRAPHS, "submit")
    return folder


@pytest.mark.cluster
def test_a_job_that_is_stopped_is_resumed_by_another_which_loses_a_node_and_gets_one(
    cluster: Cluster,
    proxy: FaultyProxy,
    client: JobSubmissionClient,
    tars: Path,
    object_store: ObjectStore,
    tmp_path: Path,
) -> None:
    source, out = f"s3://{PHOTOGRAPHS}/submit", f"s3://{LABELS}/submit"
    line = [source, out, "--workers", "2", *FAST, *BOTH]

    def committed() -> int:
        return len(object_store.keys(LABELS, "submit/commits/"))

    def are_both_held() -> bool:
        return committed() == 2 and len(set(proxy.held)) == 2

    # The command of Ray, as Ray's documentation shows it.
    proxy.hold(HELD)
    environment = {"excludes": ["/tests"], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    ray = ["ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard, "--working-dir", CHECKOUT]
    words = [*ray, "--runtime-env-json", json.dumps(environment), "--", "python", "-m", "jobs.label", *line]
    plain = Submission(cluster, tmp_path, *words, RAY_AUTH_MODE="token")
    plain.wait_until(are_both_held)
    (job,) = (job for job in client.list_jobs() if job.status == JobStatus.RUNNING and job.submission_id)
    client.stop_job(job.submission_id)
    assert plain.wait() == 0, plain.output()
    assert "was stopped" in plain.output()
    assert committed() == 2

    submitted = Submission(
        cluster, tmp_path, "jobs.submit", *line, "--address", cluster.dashboard, "--working-dir", CHECKOUT
    )
    _, lost, _ = cluster.nodes
    submitted.wait_until(lambda: are_both_held() and connected(lost.workers(), proxy.held_ports))
    lost.kill()
    fresh = cluster.join()
    submitted.wait_until(lambda: connected(fresh.workers(), proxy.held_ports))
    proxy.release()
    assert submitted.wait() == 0, submitted.output()
    assert f"{SHARDS} of {SHARDS} shards done, 2 of them before" in submitted.output()
    assert f"{CHECKOUT}: " in submitted.output(), "how much was uploaded"
    assert "sdk.py" not in submitted.output(), "Ray's client logs every connection"

    # A job that fails has its own exit code. This one is refused on the cluster, where OUT is read.
    other_settings = ["--tau", "0.5", "--address", cluster.dashboard, "--working-dir", CHECKOUT]
    refused = Submission(cluster, tmp_path, "jobs.submit", *line, *other_settings)

    options = ["--storage-options", json.dumps(object_store.options())]
    assert jobs.verify.main([out, *options]) == 0
    object_store.download(LABELS, "submit", tmp_path / "out")
    undisturbed = tmp_path / "undisturbed"
    assert jobs.label.main([str(tars), str(undisturbed), "--no-ray", *FAST, *BOTH]) == 0
    assert label_differences(tmp_path / "out", undisturbed) == []
    assert len(rows_of(tmp_path / "out")) == SHARDS * SAMPLES

    assert refused.wait() == 2, refused.output()
    assert "tau" in refused.output()
    assert "Traceback" not in refused.output()


def test_neither_detaching_nor_ctrl_c_nor_a_broken_connection_ends_a_job(
    cluster: Cluster,
    client: JobSubmissionClient,
    tars: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    nothing = [f"s3://{PHOTOGRAPHS}/nothing-here", f"s3://{LABELS}/none", "--env", "PYTHONPATH", "--detach"]
    detached = Submission(cluster, tmp_path, "jobs.submit", *nothing, "--address", cluster.dashboard)
    assert detached.wait() == 0, detached.output()
    id_of_detached = next(word for word in detached.output().split() if word.startswith("raysubmit_"))

    # This job waits for a GPU. PYTHONPATH names the package, as the image would.
    line = [f"s3://{PHOTOGRAPHS}/submit", f"s3://{LABELS}/waiting", "--device", "cuda", "--workers", "1"]
    started = "Running entrypoint for job"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else a shell's child may ignore it
    try:
        with Relay(cluster.dashboard) as relay:
            flags = ["--env", "PYTHONPATH", "--address", relay.url]
            submission = Submission(cluster, tmp_path, "jobs.submit", *line, *flags)
            submission.wait_until(lambda: started in submission.output())
            for _ in range(3):  # each time, the command connects again
                submission.wait_until(relay.break_connections)
            assert submission.interrupt() == 130, submission.output()
    finally:
        signal.signal(signal.SIGINT, before)
    output = submission.output()
    assert output.count(started) == 1, "no line of the log is printed twice"
    assert "the job continues" in output
    stop = shlex.split(next(line for line in output.splitlines() if line.startswith("stop it:")).partition(":")[2])
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
    refused = Submission(cluster, tmp_path, *words, **variables)
    assert refused.wait() == 2
    assert "wants the cluster's token" in refused.output()
    assert "Traceback" not in refused.output()
    assert len(refused.output().splitlines()) == 1


def test_a_server_that_is_not_there(cluster: Cluster, tmp_path: Path, free_port: int) -> None:
    words = ["jobs.submit", "s3://a/b", "s3://c/d", "--address", f"http://127.0.0.1:{free_port}"]
    failed = Submission(cluster, tmp_path, *words)
    assert failed.wait() == 1
    assert "does not answer" in failed.output()
    assert len(failed.output().splitlines()) == 1
