"""Errors that refuse or end a run."""

from __future__ import annotations


class RunRefused(ValueError):
    """OUT belongs to a run with other settings; the message names both values of each setting."""


class RunFailed(RuntimeError):
    """The run cannot continue: no worker starts, or a store is unreachable. The message says what was tried."""


class WorkerLost(RuntimeError):
    """The worker that was labelling a shard is gone: its process or its node died, or it was killed at a deadline."""


class RunTakenOver(RunFailed):
    """Another run with other settings or another listing of SRC has taken over OUT, so this run must not commit."""


class ModelFailed(RuntimeError):
    """The model failed at a batch. All batches have the same size, so the shard is hardly the cause."""
