"""Two runs in one OUT whose steps are interleaved in a seeded order, so that every schedule can be played again.

Each run is a thread. It stops before each operation on a file of OUT until the schedule lets it go on, so only one of
them runs at any time. A run can also be killed there: none of its further operations happens.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.output import fence, reconcile
from pipeline.output.intents import Intent, declare
from pipeline.storage import Storage
from pipeline.storage.local import LocalFolder

OPERATIONS = ("list_files", "open", "read_bytes", "read_small", "write_bytes", "create_bytes", "write_file", "delete")
TURN_SECONDS = 300.0
"""Longest time for one step: far more than it needs, so that only a deadlock exceeds it."""


class Killed(BaseException):
    """The run that performs this operation has been killed."""


class Run:
    """One run, in a thread of its own.

    Attributes:
        name: For messages.
        steps: The number of its operations on OUT so far.
        next_path: The path below OUT, or the list of them, of the operation before which it has stopped.
        result: What the call has returned; None until then.
        error: What the call has raised.
    """

    def __init__(self, name: str, call: Callable[[], Any], steps_until_killed: int | None = None) -> None:
        self.name = name
        self.steps = 0
        self.next_path = ""
        self.result: Any = None
        self.error: BaseException | None = None
        self._call, self._steps_until_killed = call, steps_until_killed
        self._go, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def ended(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def was_killed(self) -> bool:
        return isinstance(self.error, Killed)

    def step(self) -> None:
        """Let the run go on to its next operation, or to its end."""
        self._stopped.clear()
        if self._thread.ident is None:
            self._thread.start()
        self._go.set()
        assert self._stopped.wait(TURN_SECONDS), f"run {self.name} hangs"
        if self._is_over:
            self._thread.join(TURN_SECONDS)

    _is_over = False

    def _run(self) -> None:
        self._go.wait()
        self._go.clear()
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self._is_over = True
            self._stopped.set()

    def operation(self, path: str) -> None:
        """Called in the thread of the run before each operation on OUT."""
        self.steps += 1
        self.next_path = path
        if self._steps_until_killed is not None and self.steps > self._steps_until_killed:
            raise Killed
        self._stopped.set()
        assert self._go.wait(TURN_SECONDS)
        self._go.clear()


@contextmanager
def interleaved(out: str, runs: Callable[[], list[Run]]) -> Iterator[None]:
    """Stop the runs before each operation on a file below `out`, as long as the block lasts.

    Args:
        out: OUT, a local folder.
        runs: Returns the runs that have been made so far.
    """
    writers: dict[str, Run] = {}

    def current() -> Run | None:
        return next((run for run in runs() if run._thread is threading.current_thread()), None)

    def gated(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(folder: LocalFolder, *arguments: Any, **keywords: Any) -> Any:
            run = current()
            if run is not None and folder.root == out:
                run.operation(str(arguments[0]).removeprefix(out).lstrip("/"))
            return original(folder, *arguments, **keywords)

        return operation

    def declared(storage: Storage, intent: Intent) -> None:
        if run := current():
            writers[intent.path] = run
        declare(storage, intent)

    def may_be_alive(storage: Storage, intent: Intent) -> bool:
        """The writer is a thread of this process, not a process of its own."""
        writer = writers.get(intent.path)
        return writer is not None and not writer.ended and writer is not current()

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(LocalFolder, name, gated(getattr(LocalFolder, name)))
        patch.setattr(fence, "declare", declared)
        patch.setattr(reconcile, "may_be_alive", may_be_alive)
        yield


def play(rng: random.Random, first: Run, second: Run, *, before_second: Callable[[], None]) -> None:
    """Let two runs take turns until both have ended.

    Args:
        rng: Chooses when the second run starts, who goes on, and for how many operations.
        first: The run that starts first.
        second: The other run.
        before_second: Called before the second run starts.
    """
    if rng.random() < 0.7:  # while it commits a shard
        commits = rng.randrange(5)
        while not first.ended and (commits or not first.next_path.startswith("intents/")):
            commits -= first.next_path.startswith("intents/")
            first.step()
        _go_on(first, rng.randrange(8))
    else:
        _go_on(first, rng.randrange(1, 60))
    before_second()
    _go_on(second, rng.choice((1, 10, 20, 30, 1000)))
    playing = [run for run in (first, second) if not run.ended]
    while playing:
        run = rng.choice(playing)
        _go_on(run, rng.choice((1, 1, 2, 3, 8, 1000, 1000)))  # a thousand operations last until the end
        playing = [run for run in playing if not run.ended]


def _go_on(run: Run, operations: int) -> None:
    for _ in range(operations):
        if not run.ended:
            run.step()
