"""Command-line options that give a training command the recipe of a test."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["recipe_options"]


def recipe_options(recipe: Any, default: Any) -> list[str]:
    """Return options for all fields that differ from the default, which must have as many stages."""
    options = _options("--recipe", recipe, default)
    for number, (stage, other) in enumerate(zip(recipe.stages, default.stages, strict=True)):
        options += _options(f"--recipe.stages.{number}", stage, other)
    return options


def _options(prefix: str, settings: Any, default: Any) -> list[str]:
    options = []
    for name, value in dataclasses.asdict(settings).items():
        if name != "stages" and value != getattr(default, name):
            values = value if isinstance(value, tuple) else (value,)
            options += [f"{prefix}.{name.replace('_', '-')}", *map(str, values)]
    return options
