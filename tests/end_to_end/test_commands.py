"""The commands as scripts use them: exit codes, JSON, second runs, and no secret in their output."""

from __future__ import annotations

import base64
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from runs import BOTH, DEADLINE, FAST, command, differences, environment, label, label_differences, record_of, rows_of
from warm import WarmCommand

from jobs.common import guarded

SECRET = "s3cr3t-w0rd"


def warm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with these words to its end."""
    return WarmCommand(*words, variables=environment()).wait(DEADLINE)


@pytest.fixture
def run(labelled: Path, tmp_path: Path) -> Path:
    """Return a copy of a complete run, which a test may change."""
    return Path(shutil.copytree(labelled, tmp_path / "run"))


def test_shard_status_and_verify_print_json(scene_folder: Path, run: Path, tmp_path: Path) -> None:
    packed = warm("jobs.shard", scene_folder, tmp_path / "tars", "--samples-per-shard", "8", "--json")
    assert (packed.returncode, json.loads(packed.stdout)["shards"]) == (0, 3)
    assert len(list((tmp_path / "tars").glob("*.tar"))) == 3
    again = warm("jobs.cli", "shard", scene_folder, tmp_path / "tars")
    assert again.returncode == 2
    assert "holds files already (000000.tar" in again.stderr

    status = warm("jobs.status", run, "--json")
    facts = json.loads(status.stdout)
    assert status.returncode == 0
    assert (facts["shards"], facts["done"], facts["missing"], facts["failed"]) == (5, 5, 0, {})
    assert (facts["counts"], facts["model"]) == ({"ok": 20}, "tiny")
    shown = warm("jobs.cli", "status", run)
    assert (shown.returncode, "5 of 5 shards done" in shown.stdout) == (0, True)

    checked = command("jobs.cli", "verify", run, "--json")
    assert checked.returncode == 0
    nothing = {"problems": {}, "failed": [], "missing": 0, "stray": [], "gone": []}
    nothing |= {"source": {"gone": [], "new": [], "stale": [], "unknown": ""}}
    assert json.loads(checked.stdout) == {"shards": 5, "rows": 20, "files": 10} | nothing


def test_verify_names_damaged_files_and_status_missing_shards(run: Path) -> None:
    damaged = run / "labels" / "000001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"X" + damaged.read_bytes()[-8:])
    (run / "webdataset" / "000002.tar").unlink()
    record_of(run, "000004").unlink()
    checked = warm("jobs.verify", run, "--json")
    report = json.loads(checked.stdout)
    assert checked.returncode == 1
    assert [(shard, *(line.partition(";")[0] for line in lines)) for shard, lines in report["problems"].items()] == [
        ("000001", "labels/000001.parquet: the content differs from what was committed (sha256)"),
        ("000002", "webdataset/000002.tar: missing"),
    ]
    # Without a record, the files of a shard do not count.
    assert (report["missing"], report["stray"]) == (1, ["labels/000004.parquet", "webdataset/000004.tar"])
    status = warm("jobs.status", run, "--json")
    assert (status.returncode, json.loads(status.stdout)["missing"]) == (1, 1)


def test_only_the_shard_without_a_commit_record_is_labelled_again(
    scene_tars: Path, run: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_of(run, "000003").unlink()
    (run / "labels" / "000003.parquet").write_bytes(b"half a file")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if path.parent != run}
    assert label(scene_tars, run, "--no-ray", *BOTH) == 0
    assert "5 of 5 shards done, 4 of them before; 4 images" in capsys.readouterr().out
    touched = {path.relative_to(run).as_posix() for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert touched - {path for path in touched if path.startswith("listings/")} == {
        "labels/000003.parquet",
        "webdataset/000003.tar",
    }
    assert differences(run, labelled) == []


def test_new_shards_of_a_source_are_labelled(
    scene_tars: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for count in (3, 5):
        for path in sorted(scene_tars.iterdir())[:count]:
            shutil.copy2(path, source)
        assert label(source, out, "--no-ray", *BOTH) == 0
    assert "5 of 5 shards done, 3 of them before; 8 images" in capsys.readouterr().out
    assert differences(out, labelled) == ["run.json"]  # which names the source


def test_new_images_in_a_folder_relabel_only_the_groups_that_changed(
    scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    images = sorted((scene_folder / "a").iterdir())
    for count in (6, 7):
        for path in images[:count]:
            shutil.copy2(path, source)
        assert label(source, out, "--no-ray", "--samples-per-shard", "4") == 0
    done = re.search(r"(\d+) of (\d+) shards done, (\d+) of them before", capsys.readouterr().out)
    assert done is not None
    shards, present, before = map(int, done.groups())
    assert shards == present
    assert shards - before <= 2, "one added file changes at most two groups"
    assert sorted(row["key"] for row in rows_of(out)) == [path.name for path in images[:7]]


def test_other_settings_are_refused_with_both_values_without_overwrite(scene_tars: Path, run: Path) -> None:
    line = ["jobs.cli", "label", scene_tars, run, *FAST, "--no-ray", "--tau", "0.07", "--fit", "letterbox"]
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    refused = warm(*line)
    assert refused.returncode == 2
    for value in ("0.05", "0.07", "resize", "letterbox", "parquet,webdataset", "--overwrite"):
        assert value in refused.stderr
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before

    shutil.copy(run / "labels" / "000000.parquet", run / "labels" / "stale.parquet")
    assert label(scene_tars, run, "--no-ray", "--tau", "0.07", "--fit", "letterbox", "--overwrite") == 0
    assert json.loads((run / "run.json").read_text())["settings"]["method"]["fit"] == "letterbox"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*.*") if path.parent.name != "listings"}
    shards = [f"{number:06d}" for number in range(5)]
    records = {record_of(run, s).relative_to(run).as_posix() for s in shards}
    expected = records | {f"labels/{s}.parquet" for s in shards} | {"run.json", "progress.json"}
    assert names == expected  # without the tars, which the second run does not write


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["jobs.label", "nowhere", "OUT", "--no-ray"], "nowhere: no .tar"),
        (["jobs.label", "pipe:cat x", "OUT", "--no-ray"], "pipe: URLs are refused"),
        (["jobs.label", "SRC", "OUT", "--storage-options", f"{{'secret': '{SECRET}'"], "--storage-options is not JSON"),
        (["jobs.label", "SRC", "OUT", "--storage-options", f'["{SECRET}"]'], "expected an object"),
        (["jobs.status", f"ftp://me:{SECRET}@127.0.0.1/x", "--storage-options", '{"host": ""}'], "ftp://127.0.0.1/x"),
        (["jobs.verify", "OUT"], "no run.json"),
        (["jobs.cli", "lable"], "no command 'lable'"),
    ],
)
def test_errors_that_a_user_can_correct_are_one_line_and_exit_code_2(
    line: list[str], says: str, scene_tars: Path, tmp_path: Path
) -> None:
    places = {"SRC": str(scene_tars), "OUT": str(tmp_path / "out")}
    done = warm(*[places.get(word, word) for word in line])
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_the_driver_of_actors_imports_neither_torch_nor_diffusers() -> None:
    """They would cost seconds before a refusal, and hundreds of megabytes on the head node of a cluster."""
    code = "import sys, pipeline.executor.driver; sys.exit(' '.join({'torch', 'diffusers'} & set(sys.modules)) or 0)"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_checkpoint_is_named(scene_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label(scene_tars, tmp_path / "out", "--no-ray", "--model", "/no/such/model") == 2
    assert "/no/such/model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unexpected_error_shows_its_traceback_but_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    def fault() -> int:
        raise KeyError(f"https://me:{SECRET}@host/x.tar?signature={SECRET}")

    assert guarded(fault) == 1
    shown = capsys.readouterr().err
    assert "in fault" in shown
    assert "KeyError: 'https://host/x.tar" in shown
    assert SECRET not in shown


class _Guarded(http.server.SimpleHTTPRequestHandler):
    """A handler that serves files to clients with the password, the signature and the header."""

    def do_GET(self) -> None:
        expected = base64.b64encode(f"me:{SECRET}".encode()).decode()
        known = self.headers.get("Authorization") == f"Basic {expected}" and self.headers.get("X-Token") == SECRET
        if known and self.path.endswith(f"?signature={SECRET}"):
            super().do_GET()
        else:
            self.send_error(403)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(scene_tars: Path) -> Iterator[int]:
    handler = partial(_Guarded, directory=str(scene_tars))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served.server_address[1]
        served.shutdown()
        thread.join()


def test_no_secret_of_a_url_or_of_options_is_shown_or_written(server: int, labelled: Path, tmp_path: Path) -> None:
    """One of the six shards is missing, so the run prints errors, too."""
    source = f"http://me:{SECRET}@127.0.0.1:{server}/{{000000..000005}}.tar?signature={SECRET}"
    options = json.dumps({"headers": {"X-Token": SECRET}})
    line = ["jobs.label", source, tmp_path / "out", *FAST, *BOTH, "--no-ray", "--storage-options", options]
    done = warm(*line, "--json")
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert summary["counts"] == {"ok": 20}
    assert list(summary["failed"]) == ["000005"]
    assert "000005.tar" in summary["failed"]["000005"]
    outputs = [done.stdout, done.stderr]
    for name in ("status", "verify"):
        again = warm(f"jobs.{name}", tmp_path / "out", "--storage-options", options)
        assert again.returncode == 1
        outputs += [again.stdout, again.stderr]
    assert not any(SECRET in text for text in outputs)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 + 5 + 6 + 3, "labels, tars, records and failures; run.json, progress.json and the listing"
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    # The labels of the run over HTTP, in another process, equal those of the run from files in this process.
    assert label_differences(tmp_path / "out", labelled) == []
