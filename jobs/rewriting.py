"""What the commands share that make a new run from the rows of another one, without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jobs.common import OK, SOME_FAILED, storage_options
from jobs.label import show_run
from pipeline.settings import RunSettings

if TYPE_CHECKING:
    from pipeline.executor.summary import RunSummary


@dataclass(frozen=True, kw_only=True)
class RewriteFlags:
    """The flags that all these commands have."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run."""
    new: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NEW")]
    """Folder or URL of the new run."""
    format: Literal["parquet", "parquet,webdataset"] | None = None
    """Formats to write; default: those of OUT. Source images are not copied."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint, for all folders."""
    json: bool = False
    """Print the summary as JSON."""
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


def rewrite(command: RewriteFlags, make_run: Callable[..., RunSummary], *arguments: Any, **options: Any) -> int:
    """Make the new run, print its summary, and return the exit code.

    Args:
        command: The flags.
        make_run: `recut_run` or `rename_run`.
        arguments: Its arguments after OUT and NEW.
        options: Its keyword arguments that no other command has.
    """
    make_run = partial(
        make_run,
        command.out,
        command.new,
        *arguments,
        run=command.run,
        format=command.format,
        options=storage_options(command.storage_options),
        **options,
    )
    summary = show_run(make_run, command.run, as_json=command.json)
    return SOME_FAILED if summary.failed else OK
