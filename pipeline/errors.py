"""Errors that refuse or end a run."""

from __future__ import annotations


class RunRefused(ValueError):
    """OUT belongs to a run with other settings; the message names both values."""


class RunFailed(RuntimeError):
    """The run cannot go on: no worker starts, or a store is gone. The message says what was tried and found."""


class WorkerLost(RuntimeError):
    """The process that had a shard in hand is gone: it died, its node did, or it was killed at a deadline."""
