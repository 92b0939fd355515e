"""Copies of a checkpoint on a node: made once, complete, checked at each start, and used offline."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from model_stores import UNET, files, find, flip, upload

from diffseg import CheckpointError
from diffseg.model.files import fingerprint
from diffseg.model.layout import TINY
from pipeline import checkpoint_cache
from pipeline.storage import Storage, StoreUnavailable
from pipeline.weights import CACHE

pytestmark = pytest.mark.usefixtures("node_cache")


def test_the_needed_files_are_copied_once(model_store: Storage) -> None:
    first = find(model_store.url)
    assert first.fingerprint() == fingerprint(TINY)
    assert files(first.model) == files(TINY) - {"scheduler/scheduler_config.json"} | {"record.json"}
    record = (first.model / "record.json").read_bytes()
    assert json.loads(record)["url"] == model_store.url
    again = find(f"{model_store.url}/")
    assert (again.model, (first.model / "record.json").read_bytes()) == (first.model, record)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add"])
def test_a_damaged_copy_is_repaired(damage: str, model_store: Storage, caplog: pytest.LogCaptureFixture) -> None:
    copy = find(model_store.url).model
    damages: dict[str, Callable[[], object]] = {
        "flip": lambda: flip(copy / UNET),
        "cut": lambda: os.truncate(copy / UNET, 1000),
        "remove": (copy / "unet" / "config.json").unlink,
        "add": lambda: shutil.copy(copy / UNET, copy / (UNET.replace(".safe", "-00001-of-00001.safe"))),
    }
    damages[damage]()
    assert find(model_store.url).fingerprint() == fingerprint(TINY)
    assert caplog.text.count("is damaged; it is copied again") == 1
    assert "/unet/" in caplog.text


@pytest.mark.parametrize(("dtype", "read", "left"), [("float32", "", ".fp16"), ("float16", ".fp16", "")])
def test_only_the_precision_that_the_run_wants_is_copied(
    dtype: str, read: str, left: str, model_store: Storage
) -> None:
    halves = UNET.replace(".safetensors", ".fp16.safetensors")
    model_store.write_bytes(halves, model_store.read_bytes(UNET) + b" ")
    found = find(model_store.url, dtype=dtype)
    copied = files(found.model)
    assert UNET.replace(".safetensors", f"{read}.safetensors") in copied
    assert UNET.replace(".safetensors", f"{left}.safetensors") not in copied
    assert found.fingerprint() == fingerprint(found.model, dtype=dtype)  # type: ignore[arg-type]
    assert (found.fingerprint() == fingerprint(TINY)) == (dtype == "float32")


def test_the_incomplete_copy_of_a_killed_process_is_ignored_and_deleted(model_store: Storage) -> None:
    copy = find(model_store.url).model
    other = copy.with_name("of-an-earlier-listing")
    copy.rename(other)
    (other / "record.json").unlink()
    assert find(model_store.url).model == copy
    assert sorted(path.name for path in copy.parent.iterdir()) == sorted([copy.name, "lock"])


def test_a_changed_checkpoint_gets_another_copy(model_store: Storage) -> None:
    first = find(model_store.url)
    model_store.write_bytes("unet/config.json", model_store.read_bytes("unet/config.json"))  # the same bytes
    second = find(model_store.url)
    assert first.model != second.model
    assert first.fingerprint() == second.fingerprint()
    model_store.write_bytes("unet/config.json", model_store.read_bytes("unet/config.json") + b"\n")
    assert find(model_store.url).fingerprint() != first.fingerprint()


class Restless(MemoryFileSystem):
    """A store that rewrites a file whenever another one is read, `changes` times."""

    protocol = "restless"
    store: dict = {}  # noqa: RUF012 - fsspec shares it in this way
    pseudo_dirs = [""]  # noqa: RUF012
    changes = 0

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("restless://").strip("/") if path.strip("/") else ""

    def cat_file(self, path, **kwargs):
        data = super().cat_file(path, **kwargs)
        if self.changes and path.endswith(UNET):
            Restless.changes -= 1
            self.pipe_file(path.replace(UNET, "unet/config.json"), b'{"n": %d}' % self.changes)
        return data


def test_a_checkpoint_that_changes_during_the_copy_is_copied_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("restless", Restless, clobber=True)
    upload(TINY, Storage(url="restless://sd"))
    monkeypatch.setattr(Restless, "changes", 1)
    assert json.loads((find("restless://sd").model / "unet" / "config.json").read_text()) == {"n": 0}
    assert "changed while it was copied" in caplog.text
    monkeypatch.setattr(Restless, "changes", 9)
    Storage(url="restless://sd").write_bytes("unet/config.json", b"{}")
    with pytest.raises(
        CheckpointError, match=r"restless://sd: no complete copy in .* after 2 tries: the checkpoint keep"
    ):
        find("restless://sd")


class Hostile(Restless):
    """A store whose listing has paths that no checkpoint has."""

    protocol = "hostile"
    store: dict = {}  # noqa: RUF012
    names = (
        "unet/../../../evil.safetensors",
        "tokenizer/..",
        "tokenizer/",
        "tokenizer//x",
        "tokenizer/a\0b",
        "../vae/x",
    )

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("hostile://").lstrip("/") if path.strip("/") else ""

    def ls(self, path, detail=True, **kwargs):
        listed = super().ls(path, detail=detail, **kwargs)
        if path == "/sd" and detail:
            entry = {"type": "file", "size": 1, "created": "now"}
            listed += [entry | {"name": f"{path}/{name}"} for name in self.names]
        return listed


def test_paths_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    fsspec.register_implementation("hostile", Hostile, clobber=True)
    upload(TINY, Storage(url="hostile://sd"))
    before = files(tmp_path)
    copy = find("hostile://sd").model
    assert files(copy) == files(TINY) - {"scheduler/scheduler_config.json"} | {"record.json"}
    lock = (copy.parent / "lock").relative_to(tmp_path).as_posix()
    assert files(tmp_path) - before == {f"{copy.relative_to(tmp_path)}/{name}" for name in files(copy)} | {lock}


@pytest.mark.parametrize(("bound", "value"), [("MAX_FILES", 5), ("MAX_BYTES", 2**20)])
def test_the_size_of_a_checkpoint_is_limited(
    bound: str, value: int, model_store: Storage, node_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_cache, bound, value)
    with pytest.raises(CheckpointError, match=r"sd: 6 files of 0.0 GB match model_index.json, .*; expected at most"):
        find(model_store.url)
    assert not node_cache.exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A web server with the embedded checkpoint in its folder `sd`. Its attribute `requests` lists the requests."""
    shutil.copytree(TINY, tmp_path / "served" / "sd")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            served.requests.append(self.requestline)  # type: ignore[attr-defined]

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "served"))
    ) as served:
        served.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_a_copy_is_used_offline_and_while_the_store_is_down(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url, requests = f"http://127.0.0.1:{server.server_port}/sd", server.requests  # type: ignore[attr-defined]
    online = find(url)
    assert sum(UNET in line and line.startswith("GET") for line in requests) == 1
    count = len(requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find(url) == online
    with pytest.raises(CheckpointError, match=r"sd: HF_HUB_OFFLINE is set, so the store is not contacted"):
        find("tiny", vae=url)
    assert len(requests) == count
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server.shutdown()
    server.server_close()
    assert find(url, retry_timeout=0.2).model == online.model
    assert "an earlier copy is used" in caplog.text
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.server_port}/sd"):
        find("tiny", vae=url, retry_timeout=0.2)


def test_offline_the_copy_that_last_agreed_with_the_store_is_used_if_it_is_complete(
    model_store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find(model_store.url).model
    os.utime(first / "record.json", (1, 1))
    model_store.write_bytes("unet/config.json", model_store.read_bytes("unet/config.json") + b"\n")
    second = find(model_store.url).model
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find(model_store.url).model == second
    flip(second / UNET)
    assert find(model_store.url).model == first
    flip(first / UNET)
    with pytest.raises(CheckpointError, match="no complete copy"):
        find(model_store.url)


def test_a_copy_in_a_read_only_cache_is_used(model_store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv(CACHE, folder)
        copy = find(model_store.url).model
        for path in (folder, *Path(folder).rglob("*")):
            os.chmod(path, 0o555)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)  # nothing is read-only for root
        try:
            assert find(model_store.url).model == copy
            model_store.write_bytes("unet/config.json", b"{}")
            with pytest.raises(CheckpointError, match=r"Permission denied.*DIFFSEG_CACHE"):
                find(model_store.url)
        finally:
            os.seteuid(user)
            for path in (folder, *Path(folder).rglob("*")):
                os.chmod(path, 0o755)
