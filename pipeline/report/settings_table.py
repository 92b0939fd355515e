"""The settings of a run that differ from the defaults, and the command that repeats the run."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from diffseg.generation.settings import GenerationSettings
from diffseg.settings import PRESETS
from pipeline.output.manifest import Manifest, is_generated
from pipeline.settings import LabelSettings
from pipeline.storage import redact

GENERATE_DEFAULTS: Mapping[str, Any] = {
    "model": "tiny-text",
    "revision": None,
    "vae": None,
    "dtype": "float32",
    "format": "parquet",
    "name_words": "{}",
    "seed": 0,
    "image_format": "png",
    "template": "",
    "images_per_shard": 64,
}
"""Defaults of the flags of `diffseg generate`, apart from those of `GenerationSettings`."""
GROUPS = ("method", "naming")
"""Groups of settings in run.json; their settings have names of their own, as on the command line."""


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings by the name of their flag, without hyphens; lists become tuples."""
    values = {name: value for name, value in settings.items() if name not in GROUPS}
    for group in GROUPS:
        values |= settings.get(group) or {}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def changed_settings(settings: Mapping[str, Any]) -> tuple[str, list[tuple[str, Any, Any]]]:
    """Return the preset with the fewest differences from these settings, and the name and both values of each.

    Args:
        settings: `settings` of run.json.

    Returns:
        The preset, and the name, the value of the run and the value of the preset for each difference. Settings that
        this version does not know are left out.
    """
    values = flat(settings)
    candidates = []
    for preset, method in PRESETS.items():
        default = flat(dataclasses.asdict(LabelSettings()) | {"method": method.flat()})
        changed = [(name, values[name], default[name]) for name in values if name in default]
        changed = [(name, value, standard) for name, value, standard in changed if value != standard]
        # A flag cannot take a value back to "that of the checkpoint", so such a preset does not fit.
        if preset == "default" or not any(value is None for _, value, _ in changed):
            candidates.append((len(changed) + (preset != "default"), preset, changed))
    _, preset, changed = min(candidates, key=lambda candidate: candidate[0])
    return preset, changed


def label_command(manifest: Manifest, out: str) -> str:
    """Return the command that repeats a run, with a line for each flag.

    Args:
        manifest: Manifest of the run.
        out: OUT of the run.
    """
    if is_generated(manifest.settings):
        return _generate_command(manifest, out)
    preset, changed = changed_settings(manifest.settings)
    lines = [["diffseg", "label", *map(redact, manifest.source.splitlines()), out]]
    if preset != "default":
        lines.append(["--preset", preset])
    lines += [_flag(name, value) for name, value, _ in changed]
    environment = manifest.environment
    if "dtype" not in {name for name, _, _ in changed} and environment.get("device") not in (None, "cpu"):
        lines.append(_flag("dtype", manifest.settings.get("dtype")))  # its default depends on the devices
    return _joined([*lines, *_worker_flags(environment)])


def _generate_command(manifest: Manifest, out: str) -> str:
    """Return the command that repeats a run of `diffseg generate`, without --count, which run.json does not hold."""
    settings, generation = manifest.settings, manifest.settings["generation"]
    prompts = [] if generation.get("template") else [redact(manifest.source)]
    lines = [["diffseg", "generate", *prompts, out], _flag("names", tuple(flat(settings)["names"]))]
    defaults = {**dataclasses.asdict(GenerationSettings()), **GENERATE_DEFAULTS}
    values = {
        **settings,
        **generation,
        "name_words": json.dumps(flat(settings).get("name_words", {})),
        "images_per_shard": settings["samples_per_shard"],
    }
    for name, default in defaults.items():
        value = values.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        if value != default:
            lines.append(_flag(name, value))
    return _joined([*lines, *_worker_flags(manifest.environment)]) + "  # and the --count of the run, if it had one"


def _worker_flags(environment: Mapping[str, Any]) -> list[list[str]]:
    return [_flag(name, environment[name]) for name in ("batch_size", "threads") if environment.get(name, 1) != 1]


def _joined(lines: list[list[str]]) -> str:
    return " \\\n    ".join(shlex.join(words) for words in lines)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", redact(text)]
