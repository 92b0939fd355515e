"""Tests of the command line of `diffseg label`: the settings that its flags result in."""

from __future__ import annotations

import pytest

from diffseg.settings import PRESETS, settings_of
from jobs.label import main, parse
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings


def test_without_flags_all_settings_are_the_defaults() -> None:
    command = parse(["in", "out"])
    assert (command.source, command.out) == ("in", "out")
    assert (command.label, command.worker, command.run) == (LabelSettings(), WorkerSettings(), RunSettings())


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


def test_the_flag_of_a_setting_has_its_name_whatever_component_it_belongs_to() -> None:
    line = "--fit crop --timestep 50 --stable --anchors-per-side 4 --ncut-steps 2 --walk-radius 3 --vote mode"
    method = parse([*line.split(), "--no-clip-smooth", "--min-area", "0.1", "in", "out"]).label.method
    changes = {"fit": "crop", "timestep": 50, "stable": True, "anchors_per_side": 4, "ncut_steps": 2, "walk_radius": 3}
    assert method == settings_of(**changes, vote="mode", clip_smooth=False, min_area=0.1)


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
