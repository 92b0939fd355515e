"""Output that several commands share: lines, JSON, a progress bar and a table of counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it is: Rich neither reads markup in it nor highlights or wraps it.

    Keys and paths may hold brackets, which Rich would read as markup, and a wrapped path cannot be copied.
    """
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output."""
    json.dump(value, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error while the block runs; call the yielded function once per finished part."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def counts_table(counts: Mapping[str, int], seconds: Mapping[str, float], images: int) -> Table:
    """Make a table of the rows by status, beside the milliseconds per image of each step.

    Args:
        counts: The number of rows by status.
        seconds: Seconds by step, summed over `images`; the entry "total" is not shown.
        images: How many images `seconds` covers.
    """
    table = Table(title=None, show_header=True, header_style="bold")
    table.add_column("status")
    table.add_column("rows", justify="right")
    table.add_column("step")
    table.add_column("ms per image", justify="right")
    statuses = [(status, f"{n:,}") for status, n in sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))]
    steps = [(name, f"{1000 * s / images:.1f}") for name, s in seconds.items() if images and name != "total"]
    for i in range(max(len(statuses), len(steps))):
        left = statuses[i] if i < len(statuses) else ("", "")
        right = steps[i] if i < len(steps) else ("", "")
        table.add_row(*left, *right)
    return table
