"""Exports are uploaded to a stand-in for the Hugging Face Hub, beside the files of other runs."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_server import HubHandler
from labelled_runs import write_png, write_run

import jobs.export
from pipeline.exports.hub import push
from pipeline.storage import SourceError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, dict[str, bytes]]]:
    """Yield the files of each data set of a Hub by path."""
    monkeypatch.setattr(HubHandler, "data_sets", defaultdict(dict), raising=False)
    monkeypatch.setattr(HubHandler, "commits", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield HubHandler.data_sets
    server.shutdown()
    server.server_close()
    thread.join()


def exported(folder: Path, fingerprint: str, classes: list[str] | None) -> str:
    """Write what an export to huggingface consists of, as far as an upload looks at it."""
    (folder / "data").mkdir(parents=True)
    (folder / f"data/train-{fingerprint}-00000-of-00001.parquet").write_bytes(fingerprint.encode())
    (folder / "README.md").write_text(f"card of {fingerprint}\n")
    (folder / ".diffseg-export.json").write_text("{}")
    if classes is not None:
        (folder / "id2label.json").write_text(json.dumps(dict(enumerate(classes))))
    return str(folder)


def test_runs_are_appended_to_a_data_set_and_a_run_replaces_itself(
    hub: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    first = exported(tmp_path / "a", "aaaa", ["background", "sky"])
    assert push(first, "me/set", "aaaa") is False
    assert set(hub["me/set"]) == {"README.md", "id2label.json", "data/train-aaaa-00000-of-00001.parquet"}
    second = exported(tmp_path / "b", "bbbb", ["background", "sky"])
    assert push(second, "me/set", "bbbb") is True
    (tmp_path / "a/data/train-aaaa-00000-of-00001.parquet").rename(tmp_path / "a/data/validation-aaaa-0.parquet")
    assert push(first, "me/set", "aaaa") is True
    assert {path for path in hub["me/set"] if "aaaa" in path} == {"data/validation-aaaa-0.parquet"}
    assert hub["me/set"]["data/train-bbbb-00000-of-00001.parquet"] == b"bbbb"
    assert hub["me/set"]["README.md"] == b"card of aaaa\n"
    assert HubHandler.commits == [f"Labels of diffseg run {run}" for run in ("aaaa", "bbbb", "aaaa")]


def test_a_hub_that_cannot_be_reached_is_named(
    hub: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"me/set: the Hub cannot be reached \(.*refused\)"):
        push(exported(tmp_path / "a", "aaaa", None), "me/set", "aaaa")


@pytest.mark.parametrize("classes", [["background", "sea"], None])
def test_labels_with_other_classes_are_refused(
    classes: list[str] | None, hub: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    push(exported(tmp_path / "a", "aaaa", ["background", "sky"]), "me/set", "aaaa")
    before = dict(hub["me/set"])
    with pytest.raises(SourceError, match="me/set: holds labels with other classes"):
        push(exported(tmp_path / "b", "bbbb", classes), "me/set", "bbbb")
    assert hub["me/set"] == before


def test_the_command_uploads_what_it_exports(
    hub: dict[str, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "in/a.png", np.zeros((4, 6, 3), np.uint8))
    write_run(tmp_path / "out", {"a.png": np.zeros((4, 6), np.uint16)}, source=tmp_path / "in")
    words = [str(tmp_path / "out"), f"file://{tmp_path}/dest", "--processes", "1", "--push-to-hub", "me/set", "--to"]
    assert jobs.export.main([*words, "png"]) == 2
    assert "use --to huggingface" in " ".join(capsys.readouterr().err.split())
    assert not hub["me/set"]
    assert jobs.export.main([*words, "huggingface"]) == 0
    assert "datasets/me/set: uploaded" in capsys.readouterr().err.replace("\n", "")
    (path,) = (path for path in hub["me/set"] if path.endswith(".parquet"))
    (tmp_path / "uploaded.parquet").write_bytes(hub["me/set"][path])
    assert pq.read_table(tmp_path / "uploaded.parquet")["key"].to_pylist() == ["a.png"]
