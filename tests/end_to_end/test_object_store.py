"""The S3 server and the fault-injecting proxy of the other tests behave as their documentation says."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
import s3fs
from botocore.exceptions import BotoCoreError
from faulty_proxy import FaultyProxy
from object_store import ObjectStore
from runs import DEADLINE
from store_faults import StoreFaults, faults_of_kind

BROKEN = (OSError, BotoCoreError, aiohttp.ClientError, TimeoutError)
"""The errors of a client whose connection is refused, broken or silent."""


@pytest.fixture(scope="module")
def client(object_store: ObjectStore) -> Callable[..., s3fs.S3FileSystem]:
    """Return a function that makes s3fs clients without retries, so every fault becomes visible."""

    @functools.cache
    def make(endpoint: str | None = None, identity: str = "labeller", timeout: float = 20.0) -> s3fs.S3FileSystem:
        once = {"retries": {"total_max_attempts": 1}, "read_timeout": timeout, "connect_timeout": timeout}
        fs = s3fs.S3FileSystem(
            **object_store.options(identity, endpoint),
            config_kwargs=once,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        fs.retries = 1
        return fs

    return make


@pytest.fixture(scope="module")
def proxy(object_store: ObjectStore) -> Iterator[FaultyProxy]:
    with FaultyProxy(object_store.endpoint) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: FaultyProxy, client: Callable[..., s3fs.S3FileSystem]) -> Iterator[s3fs.S3FileSystem]:
    """Return a client of the proxy, which injects no faults before and after the test."""
    proxy.inject(StoreFaults())
    yield client(proxy.endpoint)
    proxy.inject(StoreFaults())


def injected(proxy: FaultyProxy, faults: StoreFaults, act: Callable[[], Any]) -> set[str]:
    """Return the faults that were injected while `act` ran: aiohttp may send a request twice if a connection broke."""
    before = len(proxy.history)
    proxy.inject(faults)
    try:
        act()
    finally:
        proxy.inject(StoreFaults())
    return {line.split()[-1] for line in proxy.history[before:]}


def test_folders_are_uploaded_and_downloaded(object_store, tmp_path):
    source = tmp_path / "source"
    for name in ("a.bin", "b/ü #1+%20.bin", "b/c/empty"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"" if name.endswith("empty") else os.urandom(1000))
    object_store.upload(source, "photographs", "round/trip")
    object_store.download("photographs", "round/trip", tmp_path / "back")
    files = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert {
        p.relative_to(tmp_path / "back"): p.read_bytes() for p in (tmp_path / "back").rglob("*") if p.is_file()
    } == files
    assert len(object_store.keys("photographs", "round/trip/")) == 3


def test_the_labeller_reads_one_bucket_and_writes_the_other(object_store, client):
    admin, labeller = client(identity="admin"), client()
    admin.pipe_file("photographs/rights/x", b"photo")
    assert labeller.cat_file("photographs/rights/x") == b"photo"
    assert labeller.find("photographs/rights") == ["photographs/rights/x"]
    labeller.pipe_file("labels/rights/x", b"label")
    assert labeller.cat_file("labels/rights/x") == b"label"
    for forbidden in (
        lambda: labeller.pipe_file("photographs/rights/y", b"1"),
        lambda: labeller.rm_file("photographs/rights/x"),
        lambda: labeller.mkdir("another"),
        lambda: labeller.find("ready"),
    ):
        with pytest.raises(PermissionError):
            forbidden()
    stranger = s3fs.S3FileSystem(**{**object_store.options(), "secret": "wrong"}, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        stranger.cat_file("photographs/rights/x")
    assert admin.find("photographs/rights") == ["photographs/rights/x"]


def test_urls_need_only_the_environment_variables(object_store, monkeypatch):
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.pipe_file("s3://labels/environment/x", b"1")
    assert fs.cat_file("s3://labels/environment/x") == b"1"


def test_the_server_restarts_with_its_data(object_store, client):
    fs = client()
    for end in (object_store.stop, object_store.kill):
        fs.pipe_file("labels/outage/x", end.__name__.encode())
        end()
        try:
            with pytest.raises(BROKEN):
                fs.cat_file("labels/outage/x")
        finally:
            object_store.start()
        assert fs.cat_file("labels/outage/x") == end.__name__.encode()


def test_the_proxy_forwards_everything_unchanged(through, proxy, tmp_path):
    data = os.urandom(11 * 2**20)  # s3fs uploads in parts from twice the size of a part on
    before = proxy.counts
    through.pipe_file("labels/pass/one", data[: 2**20])
    through.pipe_file("labels/pass/parts", data, chunksize=5 * 2**20)
    (tmp_path / "file").write_bytes(data)
    through.put_file(str(tmp_path / "file"), "labels/pass/ü #1+%20", chunksize=5 * 2**20)
    assert through.cat_file("labels/pass/one") == data[: 2**20]
    assert (
        through.cat_file("labels/pass/parts", start=5 * 2**20 - 50, end=5 * 2**20 + 50) == data[5 * 2**20 - 50 :][:100]
    )
    with through.open("labels/pass/ü #1+%20", "rb", block_size=2**22) as file:
        assert file.read() == data
    assert through.info("labels/pass/parts")["size"] == len(data)
    assert len(through.find("labels/pass")) == 3
    through.rm_file("labels/pass/one")
    with pytest.raises(FileNotFoundError):
        through.cat_file("labels/pass/one")
    with pytest.raises(OSError, match="pre-conditions"):
        through.pipe_file("labels/pass/parts", b"", mode="create")
    assert (proxy.counts - before).keys() >= {"GET", "PUT", "HEAD", "LIST", "POST", "DELETE"}
    assert not [name for name in proxy.counts - before if name.islower()]


@pytest.mark.parametrize("name", ["slow_down", "error", "reset", "lost_answer", "reset_body", "stall"])
def test_a_get_that_fails(name, through, proxy, client):
    reader = client(proxy.endpoint, timeout=2.0) if name == "stall" else through
    through.pipe_file("labels/get/x", os.urandom(300_000))

    def read():
        with pytest.raises(BROKEN):
            reader.cat_file("labels/get/x")

    assert injected(proxy, StoreFaults(**{name: 1.0}), read) == {name}


@pytest.mark.parametrize("name", ["slow_down", "error", "reset", "lost_answer", "cut"])
def test_a_put_that_fails(name, through, proxy):
    path, data = f"labels/put/{name}", os.urandom(300_000)
    through.pipe_file(path, b"old")

    def write():
        with pytest.raises(BROKEN):
            through.pipe_file(path, data)

    assert injected(proxy, StoreFaults(**{name: 1.0}), write) == {name}
    assert through.cat_file(path) == (data if name == "lost_answer" else b"old")


def test_a_body_that_trickles_and_a_listing_that_is_slow(through, proxy):
    data = os.urandom(300_000)
    through.pipe_file("labels/slow/x", data)
    start = time.monotonic()
    faults = StoreFaults(trickle=1.0, trickle_seconds=0.5)
    assert injected(proxy, faults, lambda: through.cat_file("labels/slow/x") == data) == {"trickle"}
    assert time.monotonic() - start > 0.4
    start = time.monotonic()
    faults = StoreFaults(slow_listing=1.0, slow_seconds=0.5)
    assert injected(proxy, faults, lambda: through.find("labels/slow")) == {"slow_listing"}
    assert time.monotonic() - start > 0.4


def test_a_listing_omits_new_keys_for_a_while(through, proxy, monkeypatch):
    now, listings = [0.0], []
    monkeypatch.setattr(proxy, "clock", lambda: now[0])
    through.pipe_file("labels/late/old", b"1")
    now[0] = 6.0
    through.pipe_file("labels/late/new ü", b"2")
    through.pipe_file("labels/late/old", b"3")
    faults = StoreFaults(stale_listing=1.0, stale_seconds=5.0)
    assert injected(proxy, faults, lambda: listings.append(through.find("labels/late"))) == {"stale_listing"}
    now[0] = 12.0
    assert injected(proxy, faults, lambda: listings.append(through.find("labels/late"))) == set()
    assert listings == [["labels/late/old"], ["labels/late/new ü", "labels/late/old"]]


def test_a_proxy_that_is_down_and_comes_up(through, proxy):
    through.pipe_file("labels/down/x", b"1")
    proxy.go_down()
    with pytest.raises(BROKEN):
        through.cat_file("labels/down/x")
    proxy.come_up()
    assert through.cat_file("labels/down/x") == b"1"
    proxy.go_down(0.1)
    end = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(BROKEN):
            assert through.cat_file("labels/down/x") == b"1"
            break
        assert time.monotonic() < end
        time.sleep(0.02)


def test_held_requests_wait_until_they_are_released(through, proxy):
    for name in ("x", "y"):
        through.pipe_file(f"labels/held/{name}", name.encode())
    proxy.hold("GET /labels/held/x")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(through.cat_file, "labels/held/x")
        end = time.monotonic() + DEADLINE
        while proxy.held != ["GET /labels/held/x"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert through.cat_file("labels/held/y") == b"y"
        assert not reading.done()
        proxy.release()
        assert reading.result(DEADLINE) == b"x"
    assert proxy.held == []
    assert through.cat_file("labels/held/x") == b"x"


def test_the_same_seed_gives_the_same_faults(object_store, client):
    def run(seed: int) -> list[str]:
        faults = StoreFaults(slow_down=0.2, error=0.1, reset=0.1, lost_answer=0.1, reset_body=0.1)
        with FaultyProxy(object_store.endpoint, faults, seed=seed) as proxy:
            fs = client(proxy.endpoint)
            for act in [lambda: fs.pipe_file("labels/seed/x", b"12"), lambda: fs.cat_file("labels/seed/x")] * 12:
                with contextlib.suppress(BROKEN):
                    act()
            assert sum(proxy.counts[fault] for fault in faults_of_kind("GET")) == len(proxy.history)
            return proxy.history

    first = run(1)
    assert run(1) == first
    assert run(2) != first
    assert 5 < len(first) < 50


def test_probabilities_above_one_in_total_are_refused():
    StoreFaults(cut=1.0, stall=1.0)
    with pytest.raises(ValueError, match="sum to more than 1"):
        StoreFaults(slow_down=0.6, cut=0.6)
