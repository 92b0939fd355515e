"""Plots need matplotlib; where it is missing, a log line says which picture is left out."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from diffseg.drawing import plot
from diffseg.drawing.plot import can_draw, new_figure, save_figure, style_axes


def test_a_missing_matplotlib_is_logged_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert not can_draw("curves.png")
    (message,) = caplog.messages
    assert message.startswith("curves.png is not drawn")
    assert message.endswith("pip install 'diffseg-pipeline[plots]'")


def test_a_figure_is_saved_as_png() -> None:
    pytest.importorskip("matplotlib")
    assert can_draw("curves.png")
    figure = new_figure(2, 1)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1])
    style_axes(axes, "title")
    buffer = io.BytesIO()
    save_figure(figure, buffer)
    with Image.open(buffer) as image:
        assert image.format == "PNG"
        assert image.size == (2 * plot.DPI, plot.DPI)
        assert "Software" not in image.info
