"""Label images: DiffSeg pseudo-labels for every sample of SRC, into OUT.

Runs on the Ray cluster that it finds (or --address), else on a local Ray on this machine. Stopped or killed at any
moment, the same command goes on where it stopped. Exit code: 0 all done; 1 some shards, or more samples than
--allowed-failures, failed; 2 wrong usage or refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from diffseg.settings import PRESETS, Preset, StageName, thresholds
from jobs.common import OK, SOME_FAILED, guarded, storage_options
from jobs.printing import counts_table, print_json
from pipeline.executor.logs import tell_json
from pipeline.readers.names import parse_names
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings

if TYPE_CHECKING:
    from pipeline.executor.driver import RunSummary


@dataclass(frozen=True, kw_only=True)
class LabelCommand:
    """The flags of `diffseg label`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """Folder, glob or URL of WebDataset tars, of Parquet files with an image column, or of image files."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL for labels/, commits/ and run.json."""
    preset: Preset = "default"
    """Settings that the flags of the method start from."""
    storage_options: str = ""
    """JSON object for fsspec (credentials, endpoint) for SRC, OUT and a model's URL; better: the store's own
    environment variables."""
    allowed_failures: float = 0.1
    """Share of samples that may fail before the exit code is 1."""
    json: bool = False
    """Print the summary as JSON."""
    label: Annotated[LabelSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=LabelSettings)
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


_registry = tyro.constructors.ConstructorRegistry()


def _numbers(text: str) -> tuple[float, ...]:
    """A number for all rounds, or one a round."""
    numbers = tuple(float(word) for word in text.split(","))
    return numbers if len(numbers) > 1 else thresholds(numbers[0])


COMMA_SEPARATED: Mapping[Any, tuple[str, Callable[[str], tuple[Any, ...]]]] = {
    tuple[float, ...] | None: ("NUMBER[,NUMBER…]", _numbers),
    tuple[StageName, ...] | None: ("STAGE[,STAGE…]", lambda text: tuple(text.split(","))),
    tuple[str, ...]: ("NAME[,NAME…]", parse_names),
}
"""Kinds of settings with several values, how they are shown and read: one word each, so that none swallows SRC."""


@_registry.primitive_rule
def _comma_separated(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    if info.type not in COMMA_SEPARATED:
        return None
    metavar, read = COMMA_SEPARATED[info.type]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["None" if value is None else ",".join(map(_shown, value))],
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def parse(argv: list[str]) -> LabelCommand:
    """The command line, where --preset sets the defaults of the method's flags."""
    names = [value for flag, value in itertools.pairwise(argv) if flag == "--preset"]
    names += [word.removeprefix("--preset=") for word in argv if word.startswith("--preset=")]
    method = PRESETS[names[-1] if names and names[-1] in PRESETS else "default"]
    default = LabelCommand(source=tyro.MISSING, out=tyro.MISSING, label=LabelSettings(method=method))
    return tyro.cli(
        LabelCommand,
        args=argv,
        default=default,
        prog="diffseg label",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=_registry,
    )


def _label(command: LabelCommand) -> int:
    from pipeline.executor.driver import (
        label_run,  # ray and torch take seconds to import, which --help need not wait for
    )

    console = Console(stderr=command.json)
    if command.run.log_format == "json":
        tell_json()
    options = storage_options(command.storage_options)
    summary = label_run(
        command.source,
        command.out,
        settings=command.label,
        worker=command.worker,
        run=command.run,
        source_options=options,
        out_options=options,
        console=None if command.run.log_format == "json" else console,
    )
    if command.json:
        print_json(dataclasses.asdict(summary))
    else:
        _print(console, summary)
    bad = bool(summary.failed) or summary.failed_share() > command.allowed_failures
    return SOME_FAILED if bad else OK


def _print(console: Console, summary: RunSummary) -> None:
    console.print(counts_table(summary.counts, summary.seconds, summary.images))
    done = summary.shards - len(summary.failed)
    line = f"{done} of {summary.shards} shards done"
    if summary.done_before:
        line += f", {summary.done_before} of them before"
    if summary.images:
        line += f"; {summary.images} images in {summary.wall:.1f} s"
    console.print(line, highlight=False)
    for name, error in summary.failed.items():
        console.print(f"failed: {name}: {error}", style="red", markup=False, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg label`; the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _label(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
