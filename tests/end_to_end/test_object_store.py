"""The S3 server and the proxy that other tests rely on: what they promise is what a client meets."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
import s3fs
from botocore.exceptions import BotoCoreError
from faults import Faults, of_kind
from faulty_proxy import FaultyProxy
from object_store import ObjectStore

BROKEN = (OSError, BotoCoreError, aiohttp.ClientError, TimeoutError)
"""What a client may raise for a connection that is refused, broken or silent."""


@pytest.fixture(scope="module")
def client(object_store: ObjectStore) -> Callable[..., s3fs.S3FileSystem]:
    """Makes s3fs clients that try once, so that every fault shows."""

    @functools.cache
    def make(endpoint: str | None = None, identity: str = "labeller", patience: float = 20.0) -> s3fs.S3FileSystem:
        once = {"retries": {"total_max_attempts": 1}, "read_timeout": patience, "connect_timeout": patience}
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
    """A client of the proxy, which has no faults before and after the test."""
    proxy.set(Faults())
    yield client(proxy.endpoint)
    proxy.set(Faults())


def injected(proxy: FaultyProxy, faults: Faults, act: Callable[[], Any]) -> set[str]:
    """What was injected while `act` ran under `faults`: aiohttp may ask twice if a connection broke."""
    before = len(proxy.history)
    proxy.set(faults)
    try:
        act()
    finally:
        proxy.set(Faults())
    return {line.split()[-1] for line in proxy.history[before:]}


def test_folders_go_up_and_come_back(object_store, tmp_path):
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


def test_the_labeller_reads_photographs_and_writes_labels_only(object_store, client):
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


def test_urls_work_with_the_environment_alone(object_store, monkeypatch):
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.pipe_file("s3://labels/environment/x", b"1")
    assert fs.cat_file("s3://labels/environment/x") == b"1"


def test_the_server_comes_back_with_its_data(object_store, client):
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


def test_what_passes_through_the_proxy_is_unchanged(through, proxy, tmp_path):
    data = os.urandom(11 * 2**20)  # parts begin where it is at least twice as long as one
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
    reader = client(proxy.endpoint, patience=2.0) if name == "stall" else through
    through.pipe_file("labels/get/x", os.urandom(300_000))

    def read():
        with pytest.raises(BROKEN):
            reader.cat_file("labels/get/x")

    assert injected(proxy, Faults(**{name: 1.0}), read) == {name}


@pytest.mark.parametrize("name", ["slow_down", "error", "reset", "lost_answer", "cut"])
def test_a_put_that_fails(name, through, proxy):
    path, data = f"labels/put/{name}", os.urandom(300_000)
    through.pipe_file(path, b"old")

    def write():
        with pytest.raises(BROKEN):
            through.pipe_file(path, data)

    assert injected(proxy, Faults(**{name: 1.0}), write) == {name}
    assert through.cat_file(path) == (data if name == "lost_answer" else b"old")


def test_a_body_that_trickles_and_a_listing_that_is_slow(through, proxy):
    data = os.urandom(300_000)
    through.pipe_file("labels/slow/x", data)
    start = time.monotonic()
    faults = Faults(trickle=1.0, trickle_seconds=0.5)
    assert injected(proxy, faults, lambda: through.cat_file("labels/slow/x") == data) == {"trickle"}
    assert time.monotonic() - start > 0.4
    start = time.monotonic()
    faults = Faults(slow_listing=1.0, slow_seconds=0.5)
    assert injected(proxy, faults, lambda: through.find("labels/slow")) == {"slow_listing"}
    assert time.monotonic() - start > 0.4


def test_a_listing_that_is_late_for_new_keys(through, proxy):
    listings = []
    through.pipe_file("labels/late/old", b"1")
    time.sleep(0.6)
    through.pipe_file("labels/late/new ü", b"2")
    through.pipe_file("labels/late/old", b"3")
    faults = Faults(stale_listing=1.0, stale_seconds=0.5)
    assert injected(proxy, faults, lambda: listings.append(through.find("labels/late"))) == {"stale_listing"}
    time.sleep(0.6)
    assert injected(proxy, faults, lambda: listings.append(through.find("labels/late"))) == set()
    assert listings == [["labels/late/old"], ["labels/late/new ü", "labels/late/old"]]


def test_a_proxy_that_is_gone_and_comes_back(through, proxy):
    through.pipe_file("labels/gone/x", b"1")
    proxy.gone(0.5)
    with pytest.raises(BROKEN):
        through.cat_file("labels/gone/x")
    time.sleep(0.7)
    assert through.cat_file("labels/gone/x") == b"1"
    proxy.gone()
    with pytest.raises(BROKEN):
        through.cat_file("labels/gone/x")
    proxy.back()
    assert through.cat_file("labels/gone/x") == b"1"


def test_the_same_seed_gives_the_same_faults(object_store, client):
    def run(seed: int) -> list[str]:
        faults = Faults(slow_down=0.2, error=0.1, reset=0.1, lost_answer=0.1, reset_body=0.1)
        with FaultyProxy(object_store.endpoint, faults, seed=seed) as proxy:
            fs = client(proxy.endpoint)
            for act in [lambda: fs.pipe_file("labels/seed/x", b"12"), lambda: fs.cat_file("labels/seed/x")] * 12:
                with contextlib.suppress(BROKEN):
                    act()
            assert sum(proxy.counts[fault] for fault in of_kind("GET")) == len(proxy.history)
            return proxy.history

    first = run(1)
    assert run(1) == first
    assert run(2) != first
    assert 5 < len(first) < 50


def test_faults_that_cannot_all_be():
    Faults(cut=1.0, stall=1.0)
    with pytest.raises(ValueError, match="more likely than 1"):
        Faults(slow_down=0.6, cut=0.6)
