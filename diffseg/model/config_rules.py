"""Rules for the values in a checkpoint's JSON files, which are applied before anything is built from them.

A model of ten million layers fits into a configuration of one line. Each number therefore has a bound far above that
of any published model, and a file that exceeds one is refused in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from diffseg.model.layout import CheckpointError

Verdict = Literal["supported", "irrelevant", "refused"]

MAX_SHOWN = 80
"""Most characters of a refused value in a message."""


@dataclass(frozen=True)
class Rule:
    """What one key of a JSON file may hold.

    Attributes:
        verdict: supported: the value has its effect. irrelevant: nothing that DiffSeg reads depends on the value.
            refused: only the value that turns the feature off is accepted.
        type: Type of the accepted values, as pydantic reads it.
        expects: What is accepted, and for refused features why, for the message.
    """

    verdict: Verdict
    type: Any
    expects: str
    adapter: TypeAdapter[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", TypeAdapter(self.type))

    def accepts(self, value: object) -> bool:
        """Return whether a value that was read from JSON is accepted."""
        try:
            self.adapter.validate_python(value, strict=True)
        except (ValidationError, RecursionError):
            return False
        return True


Rules = Mapping[str, Rule]


def check_config(path: Path, config: Mapping[str, Any], rules: Rules) -> None:
    """Check the values of a JSON file. Keys without a rule are ignored, as diffusers and transformers ignore them.

    Raises:
        CheckpointError: A value is not accepted. The message names file, key and value, and what is expected.
    """
    for key, rule in rules.items():
        if key in config and not rule.accepts(config[key]):
            raise refused(path, key, config[key], rule.expects)


def refused(path: Path, key: str, value: object, expects: str) -> CheckpointError:
    """Return the error for a value that is not accepted."""
    shown = json.dumps(value, default=str) if not isinstance(value, (list, dict)) else _shorten_nested(value)
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "…"
    return CheckpointError(f"{path}: {key} is {shown}; expected {expects}")


def _shorten_nested(value: list[Any] | dict[str, Any]) -> str:
    """Return the beginning of a nested value, which may be too long or too deep to be converted as a whole."""
    try:
        return json.dumps(value if isinstance(value, dict) else value[:MAX_SHOWN], default=str)
    except RecursionError:
        return f"a {type(value).__name__} of many levels"


def integer(low: int, high: int, *, verdict: Verdict = "supported", optional: bool = False) -> Rule:
    """Return the rule for an integer from `low` to `high`, or null if it is optional."""
    kind = Annotated[int, Field(ge=low, le=high)]
    return Rule(verdict, kind | None if optional else kind, _or_null(f"an integer from {low} to {high}", optional))


def number(low: float, high: float, *, verdict: Verdict = "supported", optional: bool = False) -> Rule:
    """Return the rule for a finite number from `low` to `high`, or null if it is optional."""
    kind = Annotated[float, Field(ge=low, le=high, allow_inf_nan=False)]
    return Rule(verdict, kind | None if optional else kind, _or_null(f"a number from {low:g} to {high:g}", optional))


def boolean(*, verdict: Verdict = "supported") -> Rule:
    """Return the rule for true, false or null, which published files have in the place of false."""
    return Rule(verdict, bool | None, "true or false")


def one_of(*values: str | None, verdict: Verdict = "supported") -> Rule:
    """Return the rule for one of some texts, or null."""
    shown = " or ".join(json.dumps(value) for value in values)
    return Rule(verdict, Literal[values], shown)


def integers(
    low: int, high: int, *, items: int, shortest: int = 1, verdict: Verdict = "supported", scalar: bool = False
) -> Rule:
    """Return the rule for a list of integers, or also for one integer that holds for all blocks if `scalar`."""
    kind = Annotated[int, Field(ge=low, le=high)]
    many = Annotated[list[kind], Field(min_length=shortest, max_length=items)]
    length = f"{items}" if shortest == items else f"{shortest} to {items}"
    expects = f"{'an integer, or ' if scalar else ''}a list of {length} integers, from {low} to {high}"
    return Rule(verdict, kind | many if scalar else many, expects)


def texts(*values: str, items: int, shortest: int = 1, verdict: Verdict = "supported") -> Rule:
    """Return the rule for a list of some texts."""
    many = Annotated[list[Literal[values]], Field(min_length=shortest, max_length=items)]  # type: ignore[valid-type]
    length = f"{items}" if shortest == items else f"{shortest} to {items}"
    return Rule(verdict, many, f"a list of {length}, each {' or '.join(values)}")


def off(reason: str, *values: object) -> Rule:
    """Return the rule for a feature that is refused: only null and the given values are accepted."""
    accepted = (None, *values)
    return Rule("refused", Literal[accepted], f"{' or '.join(json.dumps(value) for value in accepted)}: {reason}")


def _or_null(expects: str, optional: bool) -> str:
    return f"{expects}, or null" if optional else expects
