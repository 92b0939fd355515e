"""Tests of the command line of `diffseg label`: settings that its flags result in, its summary and its exit code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from blank_worker import BlankWorker
from changing_source import write_tar

from diffseg.settings import PRESETS, settings_of
from jobs.label import main, parse
from pipeline.executor.driver import label_run
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings


def test_without_flags_all_settings_are_the_defaults_and_the_dtype_follows_the_device() -> None:
    command = parse(["in", "out"])
    assert (command.source, command.out) == ("in", "out")
    defaults = (LabelSettings(dtype="auto"), WorkerSettings(), RunSettings())
    assert (command.label, command.worker, command.run) == defaults
    assert parse(["in", "out", "--dtype", "float16", "--batch-size", "auto"]).label.dtype == "float16"


@pytest.mark.parametrize("flag", [["--preset", "google"], ["--preset=google"]])
def test_a_preset_sets_the_defaults_of_the_other_flags(flag: list[str]) -> None:
    assert parse(["in", "out", *flag]).label.method == PRESETS["google"]
    changed = parse([*flag, "in", "out", "--fit", "resize"]).label.method
    assert changed == PRESETS["google"].with_values(fit="resize")


@pytest.mark.parametrize(
    ("text", "tau"), [("0.9", (0.9, 0.9, 0.9)), ("0.9,1.1", (0.9, 1.1)), ("1,1,1,1", (1.0, 1.0, 1.0, 1.0))]
)
def test_tau_is_one_word_at_any_position(text: str, tau: tuple[float, ...]) -> None:
    assert parse(["--tau", text, "in", "out"]).label.method.merging.tau == tau
    assert parse(["in", "out", "--tau", text]).label.method.merging.tau == tau


@pytest.mark.parametrize("text", ["0,9", "1,1", "0,05"])
def test_a_tau_with_a_decimal_comma_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["in", "out", "--tau", text])
    assert f"write a decimal as {text.replace(',', '.')}" in capsys.readouterr().err


def test_the_flag_of_a_setting_has_its_name_whatever_component_it_belongs_to() -> None:
    line = "--fit crop --timestep 50 --stable --anchors-per-side 4 --ncut-steps 2 --walk-radius 3 --vote mode"
    method = parse([*line.split(), "--no-clip-smooth", "--min-area", "0.1", "in", "out"]).label.method
    changes = {"fit": "crop", "timestep": 50, "stable": True, "anchors_per_side": 4, "ncut_steps": 2, "walk_radius": 3}
    assert method == settings_of(**changes, vote="mode", clip_smooth=False, min_area=0.1)


def test_further_words_for_names_are_a_json_object() -> None:
    naming = parse(["S", "O", "--names", "person,car", "--name-words", '{"person": ["man"]}']).label.naming
    assert naming.name_words == {"person": ("man",)}
    assert parse(["S", "O"]).label.naming.name_words == {}


def test_all_flags_that_scripts_rely_on_are_parsed() -> None:
    line = "in out --model m --workers 3 --no-ray --format parquet,webdataset --batch-size 2 --preset paper --tau 1"
    command = parse([*line.split(), "--device", "cpu", "--storage-options", '{"a": 1}', "--json"])
    assert (command.label.model, command.run.workers, command.run.no_ray) == ("m", 3, True)
    assert (command.label.formats, command.worker.batch_size) == (("parquet", "webdataset"), 2)
    assert (command.worker.device, command.storage_options, command.json) == ("cpu", '{"a": 1}', True)


@pytest.mark.parametrize("wrong", [["--tau", "x"], ["--fit", "stretch"], ["--batch-size", "0"], ["--no-such-flag"], []])
def test_wrong_usage_exits_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*(["in", "out"] if wrong else []), *wrong])
    assert "Traceback" not in capsys.readouterr().err


def test_the_summary_names_broken_and_removed_shards_and_the_exit_code_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.executor.driver.label_run", partial(label_run, worker_class=BlankWorker))
    source, out = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_tar(source / f"{name}.tar", "0123456789" * 3)
    whole = (source / "a.tar").read_bytes()
    (source / "a.tar").write_bytes(whole[: 20 * 1024])

    def run(*flags: str) -> tuple[int, str]:
        code = main([str(source), str(out), "--no-ray", *flags])
        return code, " ".join(capsys.readouterr().out.split())

    for _ in range(2):
        code, text = run("--allowed-failures", "1")
        assert (code, "truncated: a: only a part of this shard could be read" in text) == (0, True)
        assert run()[0] == 1
    (source / "b.tar").unlink()
    (source / "a.tar").write_bytes(whole)
    code, text = run("--keep-removed", "--allowed-failures", "1")
    assert "kept 1 shard with 30 rows no longer in SRC: b (--keep-removed)" in text
    code, text = run("--allowed-failures", "1")
    assert code == 0
    assert "removed 1 shard with 30 rows no longer in SRC: b" in text
    assert "truncated" not in text
