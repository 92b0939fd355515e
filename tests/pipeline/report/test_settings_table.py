"""Settings that differ from the defaults, and the command that repeats a run."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest

from diffseg.generation.settings import GenerationSettings
from diffseg.settings import settings_of
from jobs import generate
from jobs.label import parse
from pipeline.generation.settings import GenerateSettings
from pipeline.output.manifest import Manifest
from pipeline.readers.names import NameSettings
from pipeline.report.settings_table import changed_settings, label_command
from pipeline.settings import LabelSettings


def manifest_of(settings: LabelSettings, **environment: Any) -> Manifest:
    return Manifest(
        source="s3://bucket/a folder\nb",
        settings=settings.plain(),
        model_sha256="",
        resolved={},
        environment=environment,
        fingerprint="",
    )


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (LabelSettings(), []),
        (LabelSettings(method=settings_of("paper")), []),
        (LabelSettings(method=settings_of("google", flip=True)), ["flip"]),
        (LabelSettings(model="a b", max_pixels=99, include_image=True), ["include_image", "max_pixels", "model"]),
        (
            LabelSettings(
                method=settings_of(method="diffseg,walk,cross", tau=(0.5, 1.0), antialias=False, min_area=0.001),
                naming=NameSettings(names=("cat", "traffic light"), template="-{} 'x'"),
            ),
            ["antialias", "method", "min_area", "names", "tau", "template"],
        ),
        (LabelSettings(key_field="id", format="parquet,webdataset"), ["format", "key_field"]),
    ],
)
def test_the_command_repeats_the_settings(settings: LabelSettings, changed: list[str]) -> None:
    manifest = manifest_of(settings, device="cuda", batch_size=8)
    assert sorted(name for name, _, _ in changed_settings(manifest.settings)[1]) == changed
    words = shlex.split(label_command(manifest, "out").replace("\\\n", ""))
    assert words[:2] == ["diffseg", "label"]
    command = parse(words[2:])
    assert command.label.plain() == settings.plain()
    assert command.source.splitlines() == ["s3://bucket/a folder", "b"]
    assert command.out == "out"
    assert command.worker.batch_size == 8


def test_the_command_repeats_a_generation() -> None:
    settings = GenerateSettings(
        model="some/model",
        naming=NameSettings(names=("cat", "traffic light"), name_words={"cat": ("kitten",)}),
        samples_per_shard=16,
        generation=GenerationSettings(scheduler="ddim", guidance=1.0, method=("diffseg", "cross")),
        seed=5,
        image_format="webp",
        template="a {} 'x'",
    )
    manifest = dataclasses.replace(manifest_of(settings), source="prompts by the template")
    text = label_command(manifest, "out").replace("\\\n", "")
    words = shlex.split(text, comments=True)
    assert words[:3] == ["diffseg", "generate", "out"]
    command, prompts, out = generate.parse(words[2:])
    again = dataclasses.replace(command.settings(), template=command.template, dtype="float32")
    assert (again.plain(), prompts, out) == (settings.plain(), None, "out")
    command, _, _ = generate.parse(["--names", "cat", "prompts.txt", "out"])
    unchanged = manifest_of(dataclasses.replace(command.settings(), dtype="float32"))
    flags = [word for word in shlex.split(label_command(unchanged, "out"), comments=True) if word.startswith("--")]
    assert flags == ["--names"], "a setting at the default of its flag is repeated"
    of_file = dataclasses.replace(settings, template="")
    words = shlex.split(label_command(manifest_of(of_file), "out"), comments=True)
    assert words[2].startswith("s3://bucket/a folder")


def test_settings_of_another_version_are_left_out_and_secrets_are_redacted() -> None:
    manifest = manifest_of(LabelSettings())
    settings = {**manifest.settings, "unheard_of": 3}
    assert changed_settings(settings) == ("default", [])
    secret = Manifest(**{**vars(manifest), "source": "s3://user:secret@host/x"})
    assert "secret" not in label_command(secret, "out")
