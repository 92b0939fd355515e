"""What commands share that make a new run from the rows of a run, without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jobs.common import OK, SOME_FAILED, storage_options
from jobs.label import print_summary
from jobs.printing import CleanConsole, print_json
from pipeline.executor.logs import log_json
from pipeline.settings import RunSettings

if TYPE_CHECKING:
    from pipeline.executor.summary import RunSummary


@dataclass(frozen=True, kw_only=True)
class RewriteFlags:
    """The flags of every such command."""

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
    console = CleanConsole(stderr=command.json)
    logs_json = command.run.log_format == "json"
    if logs_json:
        log_json()
    summary = make_run(
        command.out,
        command.new,
        *arguments,
        run=command.run,
        format=command.format,
        options=storage_options(command.storage_options),
        console=None if logs_json else console,
        **options,
    )
    if command.json:
        print_json(dataclasses.asdict(summary))
    else:
        print_summary(console, summary)
    return SOME_FAILED if summary.failed else OK
