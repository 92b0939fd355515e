"""The readers of the JSON files in OUT, DEST and MODEL, which anybody may have written."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bounded_json import MAX_DEPTH, InvalidFile, parse_json, read_bounded
from pipeline.executor.progress_file import ProgressReport, read_progress
from pipeline.output import schemas
from pipeline.output.commit import Commit, read_commits, record_problem
from pipeline.output.intents import Intent, declare, may_be_alive
from pipeline.output.manifest import Manifest, read_manifest
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

RECORD = Commit(
    shard="s",
    state="done",
    fingerprint="f",
    attempt=1,
    rows=2,
    counts={"ok": 1, "undecodable": 1},
    files={"labels/s.parquet": {"bytes": 3, "sha256": "0" * 64}},
    seconds={"unet": 0.25},
    started=1.5e9,
    finished=1.6e9,
    worker="host",
)
IN_FLIGHT = {"shard": "s", "attempt": 1, "worker": "h:1", "seconds": 1.0, "samples": 3, "waiting": ""}
PROGRESS = ProgressReport(
    state="running",
    written=1.6e9,
    started=1.5e9,
    host="host",
    pid=7,
    todo=3,
    done=1,
    failed=0,
    waiting=1,
    images=20,
    rate=None,
    rate_seconds=0.0,
    left=12.5,
    workers_ready=1,
    workers_asked=1,
    in_flight=[IN_FLIGHT],
    driver_rss=1,
    worker_rss=2,
    gpu_memory=0,
    gpu_utilisation=0.87,
    gpu_memory_share=None,
    startup_seconds=12.5,
)
MANIFEST = Manifest(
    source="\udcff/in",  # a name that is not UTF-8
    settings=LabelSettings().plain(),
    model_sha256="m",
    resolved={"tau": [0.4], "timestep": 300, "resolution": 256, "method": ["diffseg"]},
    environment={"device": "cpu", "versions": {"python": "3.11"}},
    fingerprint="f",
)
DOCUMENTS: dict[str, tuple[Callable[[bytes], Any], dict[str, Any]]] = {
    "record": (schemas.parse_record, json.loads(RECORD.to_json())),
    "run.json": (schemas.parse_manifest, json.loads(json.dumps(dataclasses.asdict(MANIFEST)))),
    "progress.json": (schemas.parse_progress, PROGRESS.to_dict()),
    "config.json": (schemas.parse_network, {"target": "segments", "width": 16, "dimensions": 8, "size": 64}),
    "train.json": (schemas.parse_object, {"steps": 3, "labels": "f"}),
    "training": (
        lambda data: schemas.parse_training(data.decode("utf-8", "surrogateescape")),
        {"step": 3, "history": [{"step": 3, "loss": 0.5}]},
    ),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**30, "\udcff", "\x1b]0;x\x07", -1, 1e308]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each value in a document, also of the document itself."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a document in which the value at a path is another one."""
    if not path:
        return value
    document = copy.deepcopy(document)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return document


def refusal(parse: Callable[[bytes], Any], data: bytes) -> str:
    """Return the message with which a document is refused, "" if it is read."""
    try:
        parse(data)
    except InvalidFile as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_the_program_writes_is_read(name: str) -> None:
    parse, document = DOCUMENTS[name]
    parse(json.dumps(document).encode())


@settings(deadline=None, max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_read_or_refused_in_one_line(name: str, data: st.DataObject) -> None:
    parse, document = DOCUMENTS[name]
    path = data.draw(st.sampled_from(places(document)))
    text = json.dumps(changed(document, path, data.draw(VALUES))).encode()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.binary(max_size=4)) + text[at + data.draw(st.integers(0, 4)) :]
    message = refusal(parse, text)
    assert len(message) < 600
    assert message.isprintable()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"[" * 200_000, f"nested more than {MAX_DEPTH} levels"),
        (b"[" * 40 + b"]" * 40, f"nested more than {MAX_DEPTH} levels"),
        (b"9" * 5000, "is not JSON"),
        (b"1" + b"0" * 30, "a number that is too large"),
        (b"1e999", "a number that is too large"),
        (b"NaN", "NaN"),
        (b"\xff", "is not UTF-8"),
        (b"{", "is not JSON"),
    ],
)
def test_json_beyond_the_bounds_is_refused(document: bytes, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidFile, match=message):
        parse_json(document)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("record", ("rows",), "many", 'rows: expected int, got str; found "many"'),
        ("record", ("rows",), -1, "rows: expected int >= 0; found -1"),
        ("record", ("files",), None, "files: expected object, got null; found null"),
        ("record", ("shard",), "../s", 'shard: expected a text of another form; found "../s"'),
        ("record", ("counts",), {"ok": True}, 'counts[...]: expected int, got bool; found {"ok": true}'),
        ("record", ("files",), {"labels/../../x.parquet": {"bytes": 1, "sha256": ""}}, "files: expected a text"),
        ("record", ("more",), 1, 'the document: unknown field "more"'),
        ("run.json", ("settings",), None, "settings: expected object, got null; found null"),
        ("run.json", ("settings", "samples_per_shard"), 0, "settings.samples_per_shard: expected int >= 1; found 0"),
        ("run.json", ("settings", "naming", "names"), "abc", "settings.naming.names: expected array, got str"),
        ("run.json", ("resolved", "timestep"), [1], "resolved.timestep: expected int, got array; found [1]"),
        ("progress.json", ("written",), 1e300, "written: expected float <= "),
        ("progress.json", ("in_hand", 0, "seconds"), "x", 'in_hand[0].seconds: expected float, got str; found "x"'),
        ("record", ("state",), "\x1b]0;x", 'state: expected another value; found "\\u001b]0;x"'),
        ("config.json", ("width",), 10**7, "width: expected int <= 4096; found 10000000"),
    ],
)
def test_a_message_names_the_field_and_what_was_found(
    name: str, path: tuple[Any, ...], value: Any, message: str
) -> None:
    parse, document = DOCUMENTS[name]
    with pytest.raises(InvalidFile) as caught:
        parse(json.dumps(changed(document, path, value)).encode())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (schemas.RecordSchema, Commit),
        (schemas.ManifestSchema, Manifest),
        (schemas.ProgressSchema, ProgressReport),
    ],
)
def test_a_schema_has_the_fields_of_its_class(schema: type[msgspec.Struct], kind: Any) -> None:
    assert set(schema.__struct_fields__) == {field.name for field in dataclasses.fields(kind)}


def test_settings_in_run_json_are_those_of_a_run() -> None:
    known = set(schemas.SettingsSchema.__struct_fields__)
    further = ({"network": "trained"}, {"references": "state"})
    assert known == {name for values in further for name in LabelSettings(key_field="name", **values).plain()}


def test_a_fifo_a_folder_and_a_huge_file_are_refused_at_once(tmp_path: Path) -> None:
    out = Storage(url=str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(10 * 2**30)
    for name, message in {"fifo": "FIFO", "folder": "is a folder", "huge": "is larger than 1000 bytes"}.items():
        with pytest.raises(InvalidFile, match=message):
            read_bounded(out, name, 1000)
    assert out.read_small(["fifo", "folder"]) == [None, None]
    with pytest.raises(OSError, match="FIFO"):
        out.read_bytes("fifo")


def test_damaged_files_of_out_do_not_count_and_are_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = Storage(url=str(tmp_path))
    out.write_bytes(RECORD.path, b"[" * 100_000)
    assert read_commits(out) == {}
    assert record_problem(out, RECORD.path) == f"is nested more than {MAX_DEPTH} levels deep"
    out.write_bytes("progress.json", b'{"host": 3}')
    assert read_progress(out) is None
    assert "progress.json is ignored: " in caplog.text
    intent = Intent("s", "0" * 24)
    declare(out, intent)
    for content in (b"{}", b"[" * 100_000, b'{"host": "h", "pid": 1e30, "process_started": 0, "written": 0}'):
        out.write_bytes(intent.path, content)
        assert not may_be_alive(out, intent)
    out.write_bytes("run.json", json.dumps(dataclasses.asdict(MANIFEST)).encode())
    assert read_manifest(out) == dataclasses.replace(MANIFEST, settings=json.loads(json.dumps(MANIFEST.settings)))
