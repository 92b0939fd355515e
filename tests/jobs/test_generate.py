"""`diffseg generate` with the embedded model and two sampling steps, and its flags."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import differences, environment, rows_of

import jobs.cli
import jobs.generate
from jobs.generate import parse
from pipeline.output.rows import decode_mask

TESTS = Path(__file__).parents[1]
FAST = ("--no-ray", "--device", "cpu", "--steps", "2", "--size", "64", "--images-per-shard", "1")


def test_a_generation_that_is_killed_continues_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL comes just before the third of three commit records is renamed to its final name."""
    (tmp_path / "prompts.csv").write_text("prompt,classes\na dog on grass,dog\n,dog\na cat,cat\n")
    words = [str(tmp_path / "prompts.csv"), *FAST]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    line = [sys.executable, str(TESTS / "killed_at_rename.py"), str(killed / "commits" / "*"), "3", "jobs.generate"]
    ended = subprocess.run([*line, *words, str(killed)], env=environment(), capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(os.listdir(killed / "commits")) == 3, "two records and a temporary file"
    for out in (killed, whole):
        assert jobs.generate.main([*words, str(out), "--allowed-failures", "0.5"]) == 0
    assert differences(killed, whole) == []
    dog, empty, cat = rows_of(whole)
    assert (empty["status"], empty["error"]) == ("bad_prompt", "line 3: the prompt is empty")
    for row in (dog, cat):
        assert row["status"] == "ok"
        assert np.asarray(Image.open(io.BytesIO(row["image"]))).shape == (64, 64, 3)
        assert decode_mask(row["mask"]).shape == (64, 64)
        assert {segment["name"] for segment in row["segments"]} <= {*row["classes"], "background"}
        assert len(row["threshold"]) == len(row["agree_iou"]) == 1
    assert dog["image"] != cat["image"]


def test_prompts_may_be_left_out_and_flags_may_stand_anywhere() -> None:
    command, prompts, out = parse(["p.csv", "--steps", "4", "out", "--names", "dog,traffic light"])
    assert (prompts, out, command.generation.steps, command.names) == ("p.csv", "out", 4, ("dog", "traffic light"))
    _, prompts, out = parse(["--names", "dog", "s3://bucket/out"])
    assert (prompts, out) == (None, "s3://bucket/out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "without PROMPTS, expected --names"),
        (("--names", "dog", "--template", "a dog"), "expected one {}"),
        (("--names", "dog", "--count", "0"), "count 0: expected 1 or more"),
        (("--names", "dog", "--steps", "0"), "steps=0"),
        (("--names", "dog", "--seed", "-1"), "seed -1: expected 0"),
        (("--names", "dog", "--compile"), "a model that generates images is not compiled"),
        (("--names", "dog", "--model", "tiny"), "tiny"),
        (("a", "b"), "Unrecognized"),
        (("--unheard-of", "x"), "Unrecognized"),
    ],
)
def test_wrong_usage_is_refused(
    tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = jobs.generate.main([str(tmp_path / "out"), "--no-ray", "--device", "cpu", *words])
    except SystemExit as error:  # an error of the parser
        code = int(str(error.code))
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "run.json").exists()


def test_the_command_is_listed_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "generate" in jobs.cli.COMMANDS
    (tmp_path / "prompts.txt").write_text("a house\n")
    words = [str(tmp_path / "prompts.txt"), str(tmp_path / "out"), *FAST, "--names", "dog", "--json"]
    assert jobs.generate.main(words) == 1, "more images failed than allowed"
    assert json.loads(capsys.readouterr().out)["counts"] == {"bad_names": 1}
