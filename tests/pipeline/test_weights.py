"""Models in stores: copied to a node once, whole, checked each time, and the same run as from a folder."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from diffseg import CheckpointError
from diffseg.model.files import fingerprint
from diffseg.model.layout import TINY
from diffseg.settings import settings_of
from pipeline import weights
from pipeline.errors import RunRefused
from pipeline.executor.driver import label_run
from pipeline.executor.protocol import Job
from pipeline.executor.worker import LabelWorker
from pipeline.readers.pack import pack_images
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage, StoreUnavailable
from pipeline.weights import CACHE, Weights, find_weights

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node that holds nothing yet, and may ask."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """The embedded checkpoint in a store, with files beside it that nobody needs."""
    there = Storage(url=f"memory://{tmp_path.name}/sd")
    upload(TINY, there)
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "a/b/c", "x"):
        there.write_bytes(name, b"not needed")
    return there


def upload(folder: Path, store: Storage) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.write_file(path.relative_to(folder).as_posix(), path)


def find(model: str, *, retry_timeout: float = 300.0, **settings: str) -> Weights:
    return find_weights(LabelSettings(model=model, **settings), Storage(url=".", retry_timeout=retry_timeout))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_needed_is_copied_once(store: Storage) -> None:
    first = find(store.url)
    assert first.fingerprint() == fingerprint(TINY)
    assert files(first.model) == files(TINY) - {"scheduler/scheduler_config.json"} | {"record.json"}
    record = (first.model / "record.json").read_bytes()
    assert json.loads(record)["url"] == store.url
    again = find(f"{store.url}/")
    assert (again.model, (first.model / "record.json").read_bytes()) == (first.model, record)


def test_an_autoencoder_has_a_place_of_its_own(store: Storage, tmp_path: Path) -> None:
    bare = Storage(url=f"memory://{tmp_path.name}/vae")
    upload(TINY / "vae", bare)
    own = {"config.json", "diffusion_pytorch_model.safetensors", "record.json"}
    for url, expected in ((bare.url, own), (store.url, {"record.json"} | {f"vae/{n}" for n in own - {"record.json"}})):
        found = find("tiny", vae=url)
        assert found.vae is not None
        assert files(found.vae) == expected
        assert found.fingerprint() == fingerprint(TINY, vae=found.vae) != fingerprint(TINY)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add"])
def test_a_damaged_copy_is_made_again(damage: str, store: Storage, caplog: pytest.LogCaptureFixture) -> None:
    copy = find(store.url).model
    act: dict[str, Callable[[], object]] = {
        "flip": lambda: flip(copy / UNET),
        "cut": lambda: os.truncate(copy / UNET, 1000),
        "remove": (copy / "unet" / "config.json").unlink,
        "add": lambda: shutil.copy(copy / UNET, copy / "unet" / "other.safetensors"),
    }
    act[damage]()
    assert find(store.url).fingerprint() == fingerprint(TINY)
    assert caplog.text.count("is damaged; it is made again") == 1
    assert "/unet/" in caplog.text


def test_what_a_killed_process_left_does_not_count_and_goes_away(store: Storage, cache: Path) -> None:
    copy = find(store.url).model
    other = copy.with_name("of-an-earlier-listing")
    copy.rename(other)
    (other / "record.json").unlink()
    assert find(store.url).model == copy
    assert sorted(path.name for path in copy.parent.iterdir()) == sorted([copy.name, "lock"])


def test_a_checkpoint_that_was_changed_is_another_copy(store: Storage) -> None:
    first = find(store.url)
    store.write_bytes("unet/config.json", store.read_bytes("unet/config.json"))  # the same bytes, written anew
    second = find(store.url)
    assert first.model != second.model
    assert first.fingerprint() == second.fingerprint()
    store.write_bytes("unet/config.json", store.read_bytes("unet/config.json") + b"\n")
    assert find(store.url).fingerprint() != first.fingerprint()


class Restless(MemoryFileSystem):
    """A store in which a file is written anew as often as `changes` says, whenever another one is read."""

    protocol = "restless"
    store: dict = {}  # noqa: RUF012 - fsspec's way of sharing it
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


def test_a_checkpoint_that_changes_meanwhile_is_copied_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("restless", Restless, clobber=True)
    upload(TINY, Storage(url="restless://sd"))
    monkeypatch.setattr(Restless, "changes", 1)
    assert json.loads((find("restless://sd").model / "unet" / "config.json").read_text()) == {"n": 0}
    assert "was changed while it was copied" in caplog.text
    monkeypatch.setattr(Restless, "changes", 9)
    Storage(url="restless://sd").write_bytes("unet/config.json", b"{}")
    with pytest.raises(CheckpointError, match=r"restless://sd: no whole copy in .* after 2 tries: the checkpoint cha"):
        find("restless://sd")


class Hostile(Restless):
    """Its listing names what no checkpoint holds."""

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


def test_names_that_lead_elsewhere_are_not_followed(tmp_path: Path, cache: Path) -> None:
    fsspec.register_implementation("hostile", Hostile, clobber=True)
    upload(TINY, Storage(url="hostile://sd"))
    before = files(tmp_path)
    copy = find("hostile://sd").model
    assert files(copy) == files(TINY) - {"scheduler/scheduler_config.json"} | {"record.json"}
    lock = (copy.parent / "lock").relative_to(tmp_path).as_posix()
    assert files(tmp_path) - before == {f"{copy.relative_to(tmp_path)}/{name}" for name in files(copy)} | {lock}


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("unet", r"sd: looked for unet/config.json; there is none. A folder in the diffusers layout"),
        (UNET, r"sd: looked for unet/diffusion_pytorch_model.safetensors .* found none. Only safetensors"),
        ("vae", r"vae of memory://.*/sd: looked for vae/config.json; the folder holds .*unet"),
        ("vae/config.json", r"vae of memory://.*/sd: looked for vae/config.json"),
        ("vae/diffusion_pytorch_model.safetensors", r"vae of memory://.*/sd: looked for diffusion_pytorch_model.saf"),
    ],
)
def test_what_is_missing_is_told_with_the_url(removed: str, said: str, store: Storage) -> None:
    for path, _ in store.files():
        if path == removed or path.startswith(f"{removed}/"):
            store.delete(path)
    job = Job(
        settings=LabelSettings(model=store.url),
        worker=WorkerSettings(device="cpu"),
        source=Storage(url="."),
        out=Storage(url="."),
    )
    with pytest.raises(CheckpointError, match=said):
        LabelWorker().load(job)


def test_a_url_that_holds_no_checkpoint_is_told_before_anything_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Storage(url=f"memory://{tmp_path.name}/images")
    images.write_bytes("0.jpg", b"")
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *a, **k: pytest.fail("millions of names would have come"))
    with pytest.raises(CheckpointError, match=r"images: looked for unet/config.json; there is none"):
        find(images.url)
    with pytest.raises(CheckpointError, match=r"images: looked for config.json or vae/config.json; there is none"):
        find("tiny", vae=images.url)


@pytest.mark.parametrize(("bound", "value"), [("MOST_FILES", 5), ("MOST_BYTES", 2**20)])
def test_a_checkpoint_has_bounds(
    bound: str, value: int, store: Storage, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, bound, value)
    with pytest.raises(CheckpointError, match=r"sd: 6 files of 0.0 GB match model_index.json, .*; a checkpoint has at"):
        find(store.url)
    assert not cache.exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A web server with the embedded checkpoint in its folder `sd`; `asked` are the requests that came."""
    shutil.copytree(TINY, tmp_path / "served" / "sd")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            served.asked.append(self.requestline)  # type: ignore[attr-defined]

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "served"))
    ) as served:
        served.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_a_copy_serves_offline_and_while_the_store_is_away(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url, asked = f"http://127.0.0.1:{server.server_port}/sd", server.asked  # type: ignore[attr-defined]
    online = find(url)
    assert sum(UNET in line and line.startswith("GET") for line in asked) == 1
    number = len(asked)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find(url) == online
    with pytest.raises(CheckpointError, match=r"sd: HF_HUB_OFFLINE is set, so it is not asked for, and there is no"):
        find("tiny", vae=url)
    assert len(asked) == number
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server.shutdown()
    server.server_close()
    assert find(url, retry_timeout=0.2).model == online.model
    assert "a copy of earlier is used" in caplog.text
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.server_port}/sd"):
        find("tiny", vae=url, retry_timeout=0.2)


def test_offline_the_copy_that_the_store_agreed_with_last_is_taken_if_it_is_whole(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find(store.url).model
    os.utime(first / "record.json", (1, 1))
    store.write_bytes("unet/config.json", store.read_bytes("unet/config.json") + b"\n")
    second = find(store.url).model
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find(store.url).model == second
    flip(second / UNET)
    assert find(store.url).model == first
    flip(first / UNET)
    with pytest.raises(CheckpointError, match="no whole copy"):
        find(store.url)


@pytest.mark.parametrize("place", ["/dev/null/cache", "~nobody-of-this-name/cache"])
def test_a_cache_that_cannot_be_written_is_told_with_its_variable(
    place: str, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, place)
    with pytest.raises(
        CheckpointError, match=r"(null/cache: cannot keep a copy of memory.*Let|let) DIFFSEG_CACHE name"
    ):
        find(store.url)


def test_a_copy_in_a_cache_that_is_only_read_is_used(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv(CACHE, folder)
        copy = find(store.url).model
        for path in (folder, *Path(folder).rglob("*")):
            os.chmod(path, 0o555)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)  # nothing is only to be read for root
        try:
            assert find(store.url).model == copy
            store.write_bytes("unet/config.json", b"{}")
            with pytest.raises(CheckpointError, match=r"Permission denied.*DIFFSEG_CACHE"):
                find(store.url)
        finally:
            os.seteuid(user)
            for path in (folder, *Path(folder).rglob("*")):
                os.chmod(path, 0o755)


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert weights.cache_folder() == Path("/x/diffseg")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert weights.cache_folder() == Path("/h/.cache/diffseg")


def test_a_missing_model_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.executor.worker import *\n"
        "for named in {'model': 'http://127.0.0.1:9/sd'}, {'model': 'owner/name'}, {'vae': '/no/such/folder'}:\n"
        "    job = Job(settings=LabelSettings(**named), worker=WorkerSettings(), source=Storage(url='.'), out=None)\n"
        "    try: LabelWorker().load(job)\n"
        "    except ValueError as error: print(type(error).__name__, {'torch', 'diffusers'} & set(sys.modules))"
    )
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(TINY.parents[2])}
    said = subprocess.check_output([sys.executable, "-c", code], env=os.environ | own, text=True)
    assert said == "CheckpointError set()\n" * 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "s3://key:planted@bucket/sd"}, r"^s3://bucket/sd: a model's URL with a user name, a password"),
        ({"vae": "https://host/sd?sig=planted"}, r"^https://host/sd: a model's URL .* --storage-options$"),
        ({"model": "s3://bucket/sd", "revision": "v2"}, r"revision 'v2': only a hub id has revisions"),
        ({"model": "pipe://cat"}, "refused"),
        ({"vae": "simplecache::s3://bucket/x"}, "refused"),
    ],
)
def test_urls_that_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        LabelSettings(**settings)  # type: ignore[arg-type]
    assert "planted" not in str(refused.value)


def test_a_run_is_told_by_the_files_and_not_by_where_they_lie(
    scene_folder: Path, store: Storage, tmp_path: Path
) -> None:
    source, out, vae = tmp_path / "in", tmp_path / "out", tmp_path / "vae"
    pack_images(str(scene_folder / "b"), str(source), samples_per_shard=20)
    shutil.copytree(TINY / "vae", vae)

    def run(**places: str) -> int:
        settings = LabelSettings(method=settings_of(resolution=64), **places)  # type: ignore[arg-type]
        worker = WorkerSettings(device="cpu")
        done = label_run(str(source), str(out), settings=settings, worker=worker, run=RunSettings(no_ray=True))
        return done.done_before

    assert run(model=str(TINY), vae=str(vae)) == 0
    assert run(model=store.url, vae=str(vae)) == 1
    upload(vae, store.at(f"{store.url}/vae-alone"))
    assert run(model=store.url, vae=f"{store.url}/vae-alone") == 1
    with pytest.raises(RunRefused, match=rf"vae: '{vae}' in OUT, None now"):
        run(model=store.url)
    with pytest.raises(RunRefused, match="model_sha256"):
        run(model=store.url, vae=store.url)  # as part of a checkpoint its files have other names
    for record in (out / "commits").iterdir():
        record.unlink()
    store.write_bytes("unet/config.json", store.read_bytes("unet/config.json") + b"\n")
    with pytest.raises(RunRefused, match="model_sha256"):
        run(model=store.url, vae=str(vae))
