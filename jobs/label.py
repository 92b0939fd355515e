"""Label every image of SRC with DiffSeg, and write the label maps to OUT.

The command joins the Ray cluster that --address or RAY_ADDRESS names, or that the same user started with `ray start` on
this machine; otherwise it starts a private Ray, which ends with it.
After a stop or a kill at any moment, the same command continues where the run stopped.

Exit codes:
  0: every shard is done.
  1: some shards failed or are truncated or damaged, or more samples failed than --allowed-failures permits.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from diffseg.settings import PRESETS, Preset, StageName, thresholds
from jobs.common import OK, SOME_FAILED, guarded, storage_options
from jobs.printing import BROKEN_ADVICE, CleanConsole, counts_table, print_json, print_line, print_work
from pipeline.executor.logs import log_json
from pipeline.readers.left_out import left_out_lines
from pipeline.readers.names import parse_name_words, parse_names
from pipeline.readers.sources import join_sources
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.executor.summary import RunSummary
    from pipeline.output.reconcile import GoneShards


DEFAULT_ALLOWED_FAILURES = 0.1
"""Share of samples that may fail unless a flag says otherwise."""


@dataclass(frozen=True, kw_only=True)
class LabelCommand:
    """The flags of `diffseg label`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC [SRC …]")]
    """Folder, glob or URL of WebDataset tars, of Parquet files with an image column, or of image files; or a .txt file
    with one of these on each line. Several can be given before OUT. A folder inside SRC may be OUT."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL to write to; it receives labels/, commits/ and run.json."""
    preset: Preset = "default"
    """Defaults of the method's flags: ours, those of the paper, or those of google/diffseg."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint, for SRC, OUT and the URL of a model.
    The environment variables of the store are safer, because everybody can read a command line."""
    allowed_failures: float | None = None
    """Share of samples that may fail, 0 to 1; above it the exit code is 1. Default: 0.1, but a truncated or damaged
    shard makes the exit code 1 as well, because nobody knows how many samples it has lost. A share that is given
    covers such shards."""
    json: bool = False
    """Print the summary as JSON."""
    label: Annotated[LabelSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=LabelSettings)
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


REGISTRY = tyro.constructors.ConstructorRegistry()
"""How the settings that take several values are parsed."""


def _parse_numbers(text: str) -> tuple[float, ...]:
    """Parse one number for all merging rounds, or one number per round."""
    words = text.split(",")
    if len(words) == 2 and all(word.isdecimal() for word in words):  # 0,9 may be a decimal, or the tau of two rounds
        raise ValueError(
            f"{text}: write a decimal as {'.'.join(words)}, or the thresholds of two rounds as {'.0,'.join(words)}.0"
        )
    numbers = tuple(float(word) for word in words)
    return numbers if len(numbers) > 1 else thresholds(numbers[0])


STAGES: tuple[str, Callable[[str], Any]] = ("STAGE[,STAGE…]", lambda text: tuple(text.split(",")))
COMMA_SEPARATED: Mapping[Any, tuple[str, Callable[[str], Any]]] = {
    tuple[float, ...] | None: ("NUMBER[,NUMBER…]", _parse_numbers),
    tuple[StageName, ...] | None: STAGES,
    tuple[StageName, ...]: STAGES,
    tuple[str, ...]: ("NAME[,NAME…]", parse_names),
    Mapping[str, tuple[str, ...]]: ("JSON", parse_name_words),
}
"""Types of settings with several values: how the help shows each, and how it is parsed.

Such a value is one word, mostly with commas. Several words would end only at the next flag, and so include SRC.
"""


@REGISTRY.primitive_rule
def _parse_as_one_word(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Tell tyro how to parse the types of `COMMA_SEPARATED`."""
    if info.type not in COMMA_SEPARATED:
        return None
    metavar, parse_word = COMMA_SEPARATED[info.type]
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse_word(words[0]),
        is_instance=lambda value: value is None or isinstance(value, (tuple, Mapping)),
        str_from_instance=lambda value: [_format_values(value)],
    )


def _format_values(value: tuple[Any, ...] | Mapping[str, Any] | None) -> str:
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return "None" if value is None else ",".join(map(_format, value))


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def default_label_settings(argv: list[str]) -> LabelSettings:
    """Return the defaults of the flags that determine the labels, with those of the method that --preset names."""
    presets = [value for flag, value in itertools.pairwise(argv) if flag == "--preset"]
    presets += [word.removeprefix("--preset=") for word in argv if word.startswith("--preset=")]
    method = PRESETS[presets[-1] if presets and presets[-1] in PRESETS else "default"]
    return LabelSettings(method=method, dtype="auto")


def parse(argv: list[str]) -> LabelCommand:
    """Parse the flags of `diffseg label`."""
    default = LabelCommand(source=tyro.MISSING, out=tyro.MISSING, label=default_label_settings(argv))
    parse_words = partial(
        tyro.cli,
        LabelCommand,
        default=default,
        prog="diffseg label",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=REGISTRY,
    )
    # A positional argument with several words would end only at the next flag, and so include OUT.
    command, further = parse_words(args=argv, return_unknown_args=True)
    if any(word.startswith("-") for word in further):
        return parse_words(args=argv)  # prints the message about an unknown flag
    places: list[str] = [command.source, command.out, *further]
    return dataclasses.replace(command, source=join_sources(places[:-1]), out=places[-1])


def _label(command: LabelCommand) -> int:
    from pipeline.executor.driver import label_run  # imported here to keep --help fast: ray and torch take seconds

    options = storage_options(command.storage_options)
    make_run = partial(
        label_run,
        command.source,
        command.out,
        settings=command.label,
        worker=command.worker,
        run=command.run,
        source_options=options,
        out_options=options,
    )
    summary = show_run(make_run, command.run, as_json=command.json)
    return SOME_FAILED if has_failed(summary, command.allowed_failures) else OK


def show_run(make_run: Callable[..., RunSummary], run: RunSettings, *, as_json: bool) -> RunSummary:
    """Make a run, show its progress or log JSON lines, print its summary, and return it.

    Args:
        make_run: Makes the run; it takes the argument `console`.
        run: How the run is carried out.
        as_json: Whether the summary is printed as JSON.
    """
    console = CleanConsole(stderr=as_json)
    logs_json = run.log_format == "json"
    if logs_json:
        log_json()
    summary = make_run(console=None if logs_json else console)
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        print_summary(console, summary)
    return summary


def has_failed(summary: RunSummary, allowed: float | None) -> bool:
    """Return True if shards, or more samples than allowed, have failed. None stands for the default."""
    if summary.failed or (allowed is None and summary.broken):
        return True
    return summary.failed_share() > (DEFAULT_ALLOWED_FAILURES if allowed is None else allowed)


def print_summary(console: Console, summary: RunSummary) -> None:
    """Print what OUT holds after a run."""
    console.print(counts_table(summary.counts, summary.seconds, summary.images))
    done = summary.shards - len(summary.failed)
    line = f"{done:,} of {counted(summary.shards, 'shard')} done"
    if summary.done_before:
        line += f", {summary.done_before} of them before"
    if summary.images:
        line += f"; {counted(summary.images, 'image')} in {summary.wall:.1f} s"
    print_line(console, line)
    if summary.images:
        print_work(console, summary.nodes, summary.work)
    for name, note in summary.notes.items():
        print_line(console, f"{name}: {note}", "yellow")
    for text in left_out_lines(summary.left_out):
        print_line(console, text, "yellow")
    if summary.gone is not None:
        print_line(console, _gone_line(summary.gone), "yellow")
    for node, reason in summary.set_aside.items():
        print_line(console, f"node {node} was set aside: {reason}", "yellow")
    for name, status in summary.broken.items():
        print_line(console, f"{status}: {name}: {BROKEN_ADVICE}", "red")
    for name, error in summary.failed.items():
        print_line(console, f"failed: {name}: {error}", "red")


def _gone_line(gone: GoneShards) -> str:
    """Say what became of the label shards whose source is gone."""
    names = ", ".join(gone.first) + (", …" if gone.shards > len(gone.first) else "")
    what = f"{counted(gone.shards, 'shard')} with {counted(gone.rows, 'row')} no longer in SRC: {names}"
    return f"removed {what}" if gone.removed else f"kept {what} ({gone.reason})"


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg label` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _label(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
