"""The curves of a training as a picture: the loss and its parts, step by step."""

from __future__ import annotations

import io
from collections.abc import Sequence

from diffseg.drawing.plot import COLOURS, GRID, HEADING, SMALL, SOFT, Sheet
from pipeline.training.state import Record

WIDTH, HEIGHT = 760, 380
LEFT, TOP, RIGHT, BOTTOM = 64, 56, 620, 320
LABEL_HEIGHT = 20
NAMES = {
    "loss": "loss",
    "same": "|cosine| in a segment",
    "other": "|cosine| across",
}


def draw_curves(records: Sequence[Record], title: str) -> bytes:
    """A PNG; records: at least one, with the same names in all."""
    sheet = Sheet(WIDTH, HEIGHT)
    names = [name for name in NAMES if name in records[0]]
    values = {name: [record[name] for record in records] for name in names}
    last, highest = records[-1]["step"], max(1.0, *(max(line) for line in values.values()))
    sheet.text(LEFT, TOP - 28, title, size=HEADING)
    for part in range(6):
        y = BOTTOM - (BOTTOM - TOP) * part / 5
        sheet.line([(LEFT, y), (RIGHT, y)], GRID)
        sheet.text(LEFT - 8, y, f"{highest * part / 5:.2f}", anchor="rm", size=SMALL, colour=SOFT)
        x = LEFT + (RIGHT - LEFT) * part / 5
        sheet.text(x, BOTTOM + 8, f"{last * part / 5:,.0f}", anchor="ma", size=SMALL, colour=SOFT)
    sheet.text((LEFT + RIGHT) / 2, BOTTOM + 28, "steps", anchor="ma", size=SMALL, colour=SOFT)
    free = float(TOP)
    ends = []
    for colour, name in zip(COLOURS, names, strict=False):
        points = [
            (LEFT + (RIGHT - LEFT) * record["step"] / last, BOTTOM - (BOTTOM - TOP) * value / highest)
            for record, value in zip(records, values[name], strict=True)
        ]
        if len(points) > 1:
            sheet.line(points, colour, 2)
        sheet.dot(*points[-1], colour)
        ends.append((points[-1][1], name, colour))
    for y, name, colour in sorted(ends):
        free = max(free, y)
        sheet.text(RIGHT + 10, free, f"{NAMES[name]} {values[name][-1]:.2f}", size=SMALL, colour=colour)
        free += LABEL_HEIGHT
    buffer = io.BytesIO()
    sheet.save(buffer)
    return buffer.getvalue()
