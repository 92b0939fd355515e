"""Plot of a training: the loss and its parts by step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffseg.drawing.plot import COLOURS, new_figure, save_figure, style_axes
from pipeline.training.state import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "loss": "loss",
    "same": "|cosine| in a segment",
    "other": "|cosine| across",
    "classes": "classes",
    "ptc": "patch token contrast",
    "ctc": "class token contrast",
    "affinity": "affinity",
    "segmentation": "segmentation",
}
"""Labels of the plotted values, by their names in a record."""


def draw_curves(records: Sequence[Record], title: str) -> bytes:
    """Plot the records of a training, and return the plot as PNG.

    Args:
        records: At least one record; all have the same names.
        title: Title of the plot.
    """
    buffer = io.BytesIO()
    save_figure(curves_figure(records, title), buffer)
    return buffer.getvalue()


def curves_figure(records: Sequence[Record], title: str) -> Figure:
    """Plot the records of a training as lines, with the last values in the legend."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.6, 3.8)
    axes = figure.add_subplot()
    steps = [record["step"] for record in records]
    names = [name for name in LABELS if name in records[0]]
    values = {name: [record[name] for record in records] for name in names}
    for colour, name in zip(COLOURS, names, strict=False):
        label = f"{LABELS[name]} {values[name][-1]:.2f}"
        axes.plot(steps, values[name], color=colour, linewidth=1.8, marker="o", markevery=[-1], label=label)
    style_axes(axes, title)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.03 * max(1.0, *(max(line) for line in values.values())))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("steps")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure
