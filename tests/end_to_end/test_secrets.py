"""No run on Ray leaves, prints or shows the planted credentials anywhere, also when it fails."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from clusters import short_folder
from faulty_proxy import FaultyProxy
from leaks import JOBS, TASKS, WatchedHead, WatchedRun, files_below, forms, leaks
from object_store import LABELS, PHOTOGRAPHS, ObjectStore
from runs import BOTH, FAST

from diffseg.model.layout import TINY

Label = Callable[..., WatchedRun]


@pytest.fixture(scope="module")
def head() -> Iterator[WatchedHead]:
    with short_folder() as folder:
        yield WatchedHead(folder, secrets.token_hex(32))


@pytest.fixture(scope="module")
def source(scene_tars: Path, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Upload two tars of four scenes, and a file that is not a tar, and return their URL."""
    folder = tmp_path_factory.mktemp("with-a-broken-one")
    for name in ("000000.tar", "000001.tar"):
        (folder / name).write_bytes((scene_tars / name).read_bytes())
    (folder / "broken.tar").write_bytes(b"this is no tar")
    object_store.upload(folder, PHOTOGRAPHS, "secrets")
    object_store.upload(TINY, PHOTOGRAPHS, "secret-model")
    return f"s3://{PHOTOGRAPHS}/secrets"


@pytest.fixture
def label(head: WatchedHead, object_store: ObjectStore, tmp_path: Path) -> Label:
    """Return a function that runs `diffseg label` on the watched Ray, and then searches for leaked secrets.

    The function first waits until pages of the dashboard show the texts of `shows`.
    """

    def run(
        source: str,
        out: str,
        options: dict[str, Any],
        *flags: str,
        shows: Mapping[str, bytes] = {},
        meanwhile: Callable[[WatchedRun], object] = lambda run: None,
    ) -> WatchedRun:
        given = ("--storage-options", json.dumps(options)) if options else ()
        words = ("jobs.label", source, out, *given, "--workers", "1", "--store-timeout", "3", *FAST, *BOTH, *flags)
        watched = head.run(tmp_path / "output", *words, meanwhile=meanwhile)
        for page, text in shows.items():
            head.wait_for_page(watched, page, text)
        object_store.download(LABELS, tmp_path.name, tmp_path / "downloaded")
        shown = dict(files_below(tmp_path)) | dict(files_below(head.folder)) | dict(head.shared_memory())
        shown |= watched.pages | {f"title of {text.split()[:1]}": text.encode() for text in watched.titles}
        assert leaks(shown, object_store.planted) == []
        return watched

    return run


@pytest.fixture
def out(tmp_path: Path) -> str:
    return f"s3://{LABELS}/{tmp_path.name}"


def test_a_run_with_a_shard_that_fails(
    source: str, out: str, object_store: ObjectStore, head: WatchedHead, label: Label
) -> None:
    """The driver's first request is held, and then the request for a shard, until everything was looked at."""
    held_at: list[int] = []
    is_masked: list[bool] = []

    def release_what_was_seen(run: WatchedRun) -> None:
        if not held_at:
            if proxy.held:
                held_at.append(len(run.driver_titles))
        elif not is_masked:  # the title was read again, after the driver had sent its first request
            is_masked.append("***" in run.driver_titles[held_at[0]])
            proxy.hold(f"GET /{PHOTOGRAPHS}/secrets/000001.tar")
        elif (
            proxy.held
            and any(title.startswith("ray::LabelWorker") for title in run.titles)
            and b"LabelWorker.label" in run.pages.get(TASKS, b"")
        ):
            proxy.release()

    with FaultyProxy(object_store.endpoint) as proxy:
        proxy.hold("*")
        options = object_store.options(endpoint=proxy.endpoint)
        model = ("--model", f"s3://{PHOTOGRAPHS}/secret-model")
        shows = {JOBS: b"--storage-options ***"}
        run = label(source, out, options, *model, shows=shows, meanwhile=release_what_was_seen)
    assert run.code == 1, run.output
    assert list((head.folder / "cache").glob("secret-model-*/*/record.json"))
    assert "2 of 3 shards done; 8 images" in run.output, "the store answers nobody without those credentials"
    assert "broken.tar" in run.output
    assert len(object_store.keys(LABELS, out.removeprefix(f"s3://{LABELS}/") + "/failures/")) == 1
    assert any(title.startswith("ray::LabelWorker") for title in run.titles)
    assert b"LabelWorker.label" in run.pages[TASKS]
    # Before its first request the command masks the secret that was typed, and never shows it again.
    assert leaks({"typed": json.dumps(options).encode()}, object_store.planted) == ["typed"]
    assert is_masked == [True]
    assert not leaks({title: title.encode() for title in run.driver_titles[held_at[0] :]}, object_store.planted)


def test_a_wrong_secret(source: str, out: str, object_store: ObjectStore, label: Label) -> None:
    key, secret, *_ = object_store.planted
    run = label(source, out, object_store.options() | {"key": key, "secret": secret[::-1] + secret})
    assert run.code == 1
    assert "access is denied" in run.output


def test_an_unknown_option(source: str, out: str, object_store: ObjectStore, label: Label) -> None:
    options = object_store.options()
    run = label(source, out, options | {"client_kwargs": {**options["client_kwargs"], "sekret": options["secret"]}})
    assert run.code == 2
    assert "sekret" in run.output


def test_an_out_that_cannot_be_written(source: str, object_store: ObjectStore, label: Label) -> None:
    run = label(source, f"s3://{PHOTOGRAPHS}/out", object_store.options())
    assert run.code == 1
    assert "run.json: access is denied" in run.output


def test_a_store_that_workers_cannot_reach(
    tmp_path: Path, free_port: int, object_store: ObjectStore, label: Label
) -> None:
    key, secret = (object_store.options()[name] for name in ("key", "secret"))
    client = {"endpoint_url": f"http://{key}:{secret}@127.0.0.1:{free_port}", "region_name": "us-east-1"}
    # The driver does not look for names in braces, so the workers are the first to fail.
    options = object_store.options() | {"client_kwargs": client}
    shows = {TASKS: b"StoreUnavailable"}
    run = label(f"s3://{PHOTOGRAPHS}/{{a,b}}.tar", str(tmp_path / "out"), options, shows=shows)
    assert run.code == 1
    assert "has not answered for" in run.output


def test_a_signed_url_that_is_refused(tmp_path: Path, object_store: ObjectStore, label: Label) -> None:
    key, secret, *_ = object_store.planted
    signed = f"{object_store.endpoint}/{PHOTOGRAPHS}/{{a,b}}.tar?X-Amz-Credential={key}&X-Amz-Signature={secret}"
    shows = {JOBS: f"{PHOTOGRAPHS}/{{a,b}}.tar".encode()}
    run = label(signed, str(tmp_path / "out"), {}, shows=shows)
    assert run.code == 1
    assert "0 of 2 shards done" in run.output


def test_the_search_finds_every_form(tmp_path: Path) -> None:
    secret = "AKPLANTED+/secret=%"
    for number, form in enumerate(sorted(forms(secret))):
        folder = tmp_path / str(number) / "session" / "logs"
        folder.mkdir(parents=True)
        (folder / "worker.err").write_bytes(b"before\n--" + form + b"--after")
        assert leaks(dict(files_below(tmp_path / str(number))), [secret]) == [str(folder / "worker.err")]
    assert leaks({"log": secret[:-1].encode()}, [secret]) == []
