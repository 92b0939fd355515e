"""Shared helpers for plots, which are drawn with matplotlib: an optional dependency, the extra `plots`.

Figures are made with matplotlib's object interface. `matplotlib.pyplot` is not used, because it keeps global state.
"""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GRID", "INK", "SOFT", "can_draw", "new_figure", "save_figure", "style_axes"]

log = logging.getLogger(__name__)

INK, SOFT, GRID = "#1f2328", "#57606a", "#e6e8eb"
"""Colours of text and main lines, of secondary text, and of grid lines."""

COLOURS = ("#2f7fc1", "#d9822b", "#3a9d5d", "#c8453b", "#8a63c4", "#8c6d4f", "#d46fb0", "#17a2b0", "#a3a32c")
"""Colours of data series."""

DPI = 144
"""Pixels per inch of saved figures."""


def can_draw(picture: str) -> bool:
    """Return whether matplotlib is installed; if it is not, log that the picture is left out and how to install it.

    Args:
        picture: Name of the picture, for the message.
    """
    if find_spec("matplotlib") is not None:
        return True
    log.warning("%s is not drawn, because matplotlib is missing: pip install 'diffseg-pipeline[plots]'", picture)
    return False


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, whose layout leaves room for all labels."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def style_axes(axes: Axes, title: str) -> None:
    """Give axes a title on the left, a light grid behind the data, and no frame."""
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_axisbelow(True)
    axes.grid(color=GRID)
    axes.tick_params(which="both", length=0, labelcolor=SOFT, labelsize=9)
    axes.xaxis.label.set(color=SOFT, fontsize=9)
    axes.yaxis.label.set(color=SOFT, fontsize=9)
    axes.spines[:].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a figure as PNG, without the version of matplotlib, so that the same figure has the same bytes."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
