"""The one place through which commands print: lines, tables, JSON, log lines, a progress bar.

Keys, file names, errors and the files of OUT may hold control characters, with which a text can move the cursor, hide
other output or rename the window of a terminal. Everything that is printed is therefore cleaned here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress
from rich.segment import Segment
from rich.table import Table

from jobs.streams import clean, discard_output, print_text
from pipeline.timing import in_order
from pipeline.wording import counted, duration

_PLAIN = str.maketrans({"→": "->", "…": "...", "×": "x", "±": "+-", "–": "-", "−": "-", "’": "'"})
"""ASCII for characters of this program's own texts."""

NODES_SHOWN = 10
"""Nodes that are printed."""

BROKEN_ADVICE = "only a part of this shard could be read; once the file is whole, the same command labels it again"
"""What is said about a truncated or damaged shard."""


class CleanConsole(Console):
    """A console that cleans every text, and that goes on silently when nobody reads its output any more.

    Texts are printed as they are: Rich reads no markup in them, which keys and paths may seem to hold.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object into segments of clean text, in characters that the output can show."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._shown(segment.text), segment.style)

    def _shown(self, text: str) -> str:
        text = clean(text)
        if text.isascii() or self.encoding.startswith("utf"):
            return text
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.translate(_PLAIN).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    def on_broken_pipe(self) -> None:
        """Print nothing more. The exit code of the command stays that of its work."""
        self.quiet = True
        discard_output(self.file)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it is: Rich neither reads markup in it nor highlights or wraps it.

    Keys and paths may hold brackets, which Rich would read as markup, and a wrapped path cannot be copied.
    """
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output."""
    print_text(json.dumps(value, indent=1, sort_keys=True))


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error while the block runs; call the yielded function once per finished part."""
    with Progress(console=CleanConsole(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def print_work(console: Console, nodes: Mapping[str, Mapping[str, Any]], work: Mapping[str, Any]) -> None:
    """Print where a run has worked: the nodes with their workers, GPUs and speed, and the slowest shards.

    Args:
        console: Where to print.
        nodes: ``{workers, gpu}`` by host.
        work: `WorkStatistics.plain`.
    """
    rates = work["images_per_second"]
    hosts = sorted(nodes.keys() | rates.keys())
    for host in hosts[:NODES_SHOWN]:
        words = []
        if node := nodes.get(host):
            words.append(counted(node["workers"], "worker") + (f" on {node['gpu']}" if node["gpu"] else ""))
        if host in rates:
            words.append(f"{rates[host]:.3g} images/s for each worker")
        print_line(console, f"node {host}: {', '.join(words)}")
    if len(hosts) > NODES_SHOWN:
        print_line(console, f"and {counted(len(hosts) - NODES_SHOWN, 'node')} more; --json has all of them")
    if work["slowest"]:
        shards = (f"{s['shard']} ({duration(s['seconds'])}, {counted(s['images'], 'image')})" for s in work["slowest"])
        print_line(console, f"slowest shards: {', '.join(shards)}")


def counts_table(counts: Mapping[str, int], seconds: Mapping[str, float], images: int) -> Table:
    """Make a table of the rows by status, beside the milliseconds per image of each step.

    Args:
        counts: The number of rows by status.
        seconds: Seconds by step, summed over `images`; the entry "total" is not shown. Commit records sort their steps
            by name, so the table sorts them by the order of the work.
        images: How many images `seconds` covers.
    """
    table = Table(title=None, show_header=True, header_style="bold")
    table.add_column("status")
    table.add_column("rows", justify="right")
    table.add_column("step")
    table.add_column("ms per image", justify="right")
    statuses = [(status, f"{n:,}") for status, n in sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))]
    steps = [(name, f"{1000 * s / images:.1f}") for name, s in in_order(seconds).items() if images and name != "total"]
    for i in range(max(len(statuses), len(steps))):
        left = statuses[i] if i < len(statuses) else ("", "")
        right = steps[i] if i < len(steps) else ("", "")
        table.add_row(*left, *right)
    return table
