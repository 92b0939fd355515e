"""Commands on an OUT, a DEST or a MODEL that somebody else has written: an exit code and clear lines, no traceback."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labelled_runs import write_png, write_run

LABELS = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)
ESCAPE = "\x1b]0;owned\x07"
NESTED = "[" * 100_000
HOSTILE_MANIFESTS: dict[str, dict[str, Any]] = {
    "settings-null": {"settings": None},
    "settings-empty": {"settings": {}},
    "settings-list": {"settings": [1]},
    "source-number": {"source": 3},
    "shards-text": {"shards": "many"},
    "shards-huge": {"shards": 10**40},
    "fingerprint-object": {"fingerprint": {ESCAPE: ESCAPE}},
    "resolved-null": {"resolved": None},
    "environment-text": {"environment": ESCAPE},
    "unknown-field": {ESCAPE: 1},
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**30, ESCAPE, "[/x]"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `in` and a run over them in `out`; read only."""
    folder = tmp_path_factory.mktemp("run")
    for key in ("a.png", "b.png"):
        write_png(folder / "in" / key, np.full((40, 60, 3), 90, np.uint8))
    write_run(folder / "out", {"a.png": LABELS, "b.png": None}, source=folder / "in")
    return folder


@pytest.fixture
def run(labelled_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(labelled_run, tmp_path / "copy"))


def words(command: str, folder: Path) -> list[str]:
    """Return the arguments of a command on the run of a folder."""
    out = str(folder / "out")
    return {
        "show": [out, "a.png", "--picture", str(folder / "a.png")],
        "label": [str(folder / "in"), out, "--no-ray", "--device", "cpu"],
        "export": [out, str(folder / "dest"), "--to", "coco-panoptic", "--processes", "1"],
        "evaluate": [out, str(folder / "in"), "--processes", "1", "--baseline-images", "0"],
        "train": [out, str(folder / "model"), "--no-ray", "--steps", "1", "--size", "32", "--batch-size", "1"],
        "fit": ["heads", out, str(folder / "state.safetensors"), "--no-ray"],
        "report": [out, "--processes", "1"],
    }.get(command, [out])


def execute(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command and return its exit code and all that it printed."""
    capsys.readouterr()
    code = importlib.import_module(f"jobs.{command}").main(words(command, folder))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return code, captured.err + captured.out


@pytest.mark.parametrize(
    "command", ["status", "verify", "report", "show", "label", "export", "evaluate", "train", "fit"]
)
@pytest.mark.parametrize("damage", [*HOSTILE_MANIFESTS, "nested", "binary", "empty", "folder", "fifo"])
def test_a_damaged_run_json_is_refused(
    command: str, damage: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "out/run.json"
    manifest = json.loads(path.read_text())
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    else:
        contents = {"nested": NESTED.encode(), "binary": b"\xff\xfe\x00", "empty": b""}
        changed = json.dumps(manifest | HOSTILE_MANIFESTS.get(damage, {})).encode()
        path.write_bytes(contents.get(damage, changed))
    code, text = execute(command, run, capsys)
    assert code == 2
    assert text.count("\n") == 1
    assert "run.json: " in text
    assert "\x1b" not in text


@pytest.mark.parametrize("command", ["status", "verify", "report", "show"])
@pytest.mark.parametrize("document", ["commits/*.json", "failures/x.json", "progress.json"])
@pytest.mark.parametrize("content", [NESTED, "[]", "\0", '{"host": "\\u001b"}'])
def test_damaged_records_do_not_count(
    command: str,
    document: str,
    content: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = list((run / "out").glob(document)) or [run / "out" / document]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    code, text = execute(command, run, capsys)
    assert code in (0, 1, 2)
    if command == "verify" and document.startswith("commits"):
        assert "cannot be read as a record (" in text
    if command == "status" and document == "progress.json":
        assert "progress.json is ignored: " in caplog.text


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("command", ["status", "verify"])
def test_any_record_is_survived(
    command: str, data: st.DataObject, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (run / "out/commits").glob("*.json")
    kept = path.read_bytes()
    record = json.loads(kept)
    field = data.draw(st.sampled_from(sorted(record)))
    path.write_text(json.dumps(record | {field: data.draw(VALUES)}))
    try:
        assert execute(command, run, capsys)[0] in (0, 1)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("content", [NESTED, "[]", "null", '{"steps": "\\u001b"}', "\0"])
def test_a_damaged_record_of_an_export_or_a_training_is_refused(
    content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, path in (("export", run / "dest/.diffseg-export.json"), ("train", run / "model/train.json")):
        path.parent.mkdir()
        path.write_text(content)
        code, text = execute(command, run, capsys)
        assert code == 2
        assert str(path.parent) in text.replace("\n", "")
        assert "\x1b" not in text


def test_a_damaged_checkpoint_of_a_training_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("checkpoint.safetensors", "config.json", "model.safetensors"):
        shutil.rmtree(run / "model", ignore_errors=True)
        assert execute("train", run, capsys)[0] == 0
        (run / "model" / name).write_bytes(b"{}")
        arguments = [*words("train", run), "--predict", str(run / "in")]
        code = importlib.import_module("jobs.train").main(arguments)
        text = capsys.readouterr().err
        if name == "checkpoint.safetensors":  # the others are written anew from the checkpoint
            assert (code, "checkpoint.safetensors: is damaged" in text) == (2, True)
        assert "Traceback" not in text
