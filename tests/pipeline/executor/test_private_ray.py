"""The start of a private Ray on a machine that is busy with other work, without a Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from pipeline.executor.private_ray import START_ATTEMPTS, start_private_ray

SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed.")


def starts(errors: list[Exception], started: list[str]) -> Callable[..., None]:
    """Return a replacement of `ray.init` that raises these errors, one at each call, and then starts."""

    def init(**options: Any) -> None:
        started.append(options["address"])
        if len(started) <= len(errors):
            raise errors[len(started) - 1]

    return init


def test_a_start_that_takes_too_long_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(ray, "init", starts([SLOW, SLOW], started))
    start_private_ray(1)
    assert started == ["local"] * 3


def test_after_the_last_attempt_the_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(ray, "init", starts([SLOW] * (START_ATTEMPTS + 1), started))
    with pytest.raises(Exception, match="timed out during startup"):
        start_private_ray(1)
    assert len(started) == START_ATTEMPTS


def test_other_errors_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(ray, "init", starts([ValueError("no such option")], started))
    with pytest.raises(ValueError, match="no such option"):
        start_private_ray(1)
    assert len(started) == 1
