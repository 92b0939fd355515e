"""Planted credentials are in nothing that a run on Ray leaves, says or shows, also where it fails."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import short_folder
from leaks import WatchedHead, WatchedRun, files_below, forms, leaks
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
    """Two tars of four scenes, and one that is none."""
    folder = tmp_path_factory.mktemp("with-a-broken-one")
    for name in ("000000.tar", "000001.tar"):
        (folder / name).write_bytes((scene_tars / name).read_bytes())
    (folder / "broken.tar").write_bytes(b"this is no tar")
    object_store.upload(folder, PHOTOGRAPHS, "secrets")
    object_store.upload(TINY, PHOTOGRAPHS, "secret-model")
    return f"s3://{PHOTOGRAPHS}/secrets"


@pytest.fixture
def label(head: WatchedHead, object_store: ObjectStore, tmp_path: Path) -> Label:
    """`diffseg label` with these storage options on the watched Ray, and then the search for what it let slip."""

    def run(source: str, out: str, options: dict[str, Any], *flags: str) -> WatchedRun:
        given = ("--storage-options", json.dumps(options)) if options else ()
        flags = ("--workers", "1", "--store-timeout", "3", *FAST, *BOTH, *flags)
        done = head.run(tmp_path / "output", "jobs.label", source, out, *given, *flags)
        done.note(head.answers())
        object_store.download(LABELS, tmp_path.name, tmp_path / "downloaded")
        shown = dict(files_below(tmp_path)) | dict(files_below(head.folder)) | dict(head.shared_memory())
        shown |= done.answers | {f"title of {text.split()[:1]}": text.encode() for text in done.titles}
        assert leaks(shown, object_store.planted) == []
        return done

    return run


@pytest.fixture
def out(tmp_path: Path) -> str:
    return f"s3://{LABELS}/{tmp_path.name}"


def test_a_run_with_a_shard_that_fails(
    source: str, out: str, object_store: ObjectStore, head: WatchedHead, label: Label
) -> None:
    done = label(source, out, object_store.options(), "--model", f"s3://{PHOTOGRAPHS}/secret-model")
    assert done.code == 1, done.output
    assert list((head.folder / "cache").glob("secret-model-*/*/record.json"))
    assert "2 of 3 shards done; 8 images" in done.output, "the store answers nobody without those credentials"
    assert "broken.tar" in done.output
    assert len(object_store.keys(LABELS, out.removeprefix(f"s3://{LABELS}/") + "/failures/")) == 1
    # All was looked at while there was something to see.
    assert any(text.startswith("ray::LabelWorker.label") for text in done.titles)
    assert b"LabelWorker.label" in done.answers["/api/v0/tasks?detail=1&limit=1000"]
    assert b"--storage-options ***" in done.answers["/api/jobs/"]
    # The command line itself shows what was typed, until the first that the command does.
    shows = [bool(leaks({"": text.encode()}, object_store.planted)) for text in done.own_titles]
    masked = next(number for number, text in enumerate(done.own_titles) if "***" in text)
    assert shows == [True] * masked + [False] * (len(shows) - masked)


def test_a_secret_that_is_wrong(source: str, out: str, object_store: ObjectStore, label: Label) -> None:
    key, secret, *_ = object_store.planted
    done = label(source, out, object_store.options() | {"key": key, "secret": secret[::-1] + secret})
    assert done.code == 1
    assert "access is denied" in done.output


def test_an_option_that_nobody_knows(source: str, out: str, object_store: ObjectStore, label: Label) -> None:
    options = object_store.options()
    done = label(source, out, options | {"client_kwargs": {**options["client_kwargs"], "sekret": options["secret"]}})
    assert done.code == 2
    assert "sekret" in done.output


def test_an_out_that_cannot_be_written(source: str, object_store: ObjectStore, label: Label) -> None:
    done = label(source, f"s3://{PHOTOGRAPHS}/out", object_store.options())
    assert done.code == 1
    assert "run.json: access is denied" in done.output


def test_a_store_that_workers_cannot_reach(
    tmp_path: Path, free_port: int, object_store: ObjectStore, label: Label
) -> None:
    key, secret = (object_store.options()[name] for name in ("key", "secret"))
    where = {"endpoint_url": f"http://{key}:{secret}@127.0.0.1:{free_port}", "region_name": "us-east-1"}
    # Names in braces are not asked for by the driver, so the workers are the first to fail.
    options = object_store.options() | {"client_kwargs": where}
    done = label(f"s3://{PHOTOGRAPHS}/{{a,b}}.tar", str(tmp_path / "out"), options)
    assert done.code == 1
    assert "has not answered for" in done.output
    assert b"StoreUnavailable" in done.answers["/api/v0/tasks?detail=1&limit=1000"]


def test_a_signed_url_that_is_refused(tmp_path: Path, object_store: ObjectStore, label: Label) -> None:
    key, secret, *_ = object_store.planted
    signed = f"{object_store.endpoint}/{PHOTOGRAPHS}/{{a,b}}.tar?X-Amz-Credential={key}&X-Amz-Signature={secret}"
    done = label(signed, str(tmp_path / "out"), {})
    assert done.code == 1
    assert "0 of 2 shards done" in done.output
    assert f"{PHOTOGRAPHS}/{{a,b}}.tar".encode() in done.answers["/api/jobs/"]


def test_the_net_holds_every_form(tmp_path: Path) -> None:
    word = "AKPLANTED+/secret=%"
    for number, form in enumerate(sorted(forms(word))):
        folder = tmp_path / str(number) / "session" / "logs"
        folder.mkdir(parents=True)
        (folder / "worker.err").write_bytes(b"before\n--" + form + b"--after")
        assert leaks(dict(files_below(tmp_path / str(number))), [word]) == [str(folder / "worker.err")]
    assert leaks({"log": word[:-1].encode()}, [word]) == []
