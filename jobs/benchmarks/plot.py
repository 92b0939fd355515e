"""Pictures of measurements: how cost grows, on logarithmic axes, and how variants compare, as bars."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from diffseg.drawing.plot import COLOURS, GRID, HEADING, INK, SMALL, SOFT, Sheet
from jobs.benchmarks.growth import Growth
from jobs.benchmarks.measure import Comparison

BASELINE, FASTER, SLOWER = "#b6bcc4", "#2f7fc1", "#d9822b"
SUPERSCRIPT = 10
LABEL_HEIGHT = 18

WIDTH, PANEL_HEIGHT, PANEL_WIDTH = 1120, 250, 330
ROW_HEIGHT, FIRST_PANEL, SECOND_PANEL = PANEL_HEIGHT + 100, 80, 690
BAR_LEFT, BAR_WIDTH, BAR_HEIGHT, LINE_HEIGHT = 330, 480, 18, 26


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """A logarithmic axis: `low` lies at pixel `start`, `high` at `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten; where there are fewer than three, twice and five times those as well."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 2, 5)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if self.low <= value * 1.001 and value <= self.high * 1.001]
            if len(found) >= 3:
                break
        return found


def _with_unit(value: float, units: Mapping[str, float]) -> str:
    """Three digits in the largest unit that leaves 1 or more, "20 ms"; units: from large to small."""
    unit, size = next(((unit, size) for unit, size in units.items() if value >= size * 0.9995), list(units.items())[-1])
    return f"{float(f'{value / size:.3g}'):g} {unit}".strip()


def seconds_text(seconds: float) -> str:
    """Three digits: "1.5 s", "20 ms"."""
    return _with_unit(seconds, {"s": 1, "ms": 1e-3, "us": 1e-6})


def bytes_text(size: float) -> str:
    """Three digits in powers of 1000: "1.07 GB", "30 MB"."""
    return _with_unit(size, {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1})


def _count_text(count: float) -> str:
    return f"{count / 1e6:g} M" if count >= 1e5 else f"{count:,.0f}"


@dataclass(frozen=True, kw_only=True)
class _Line:
    name: str
    exponent: float
    values: Sequence[float]
    colour: str
    width: float = 1.5


def draw_growth(growths: Sequence[Growth], path: str | os.PathLike[str]) -> None:
    """A PNG with a row for each growth: seconds an image by step on the left, peak of memory on the right.

    Both axes are logarithmic, so that a power of x is a straight line; the fitted power stands at its end.
    """
    sheet = Sheet(WIDTH, len(growths) * ROW_HEIGHT + 20)
    steps = list(dict.fromkeys(name for growth in growths for point in growth.points for name in point.seconds))
    colours = dict(zip((step for step in steps if step != "total"), COLOURS * len(steps), strict=False))
    for row, growth in enumerate(growths):
        top = row * ROW_HEIGHT + 50
        seconds = [
            _Line(
                name=name,
                exponent=slope,
                values=[point.seconds[name] for point in growth.points],
                colour=colours.get(name, INK),
                width=1.5 if name in colours else 3,
            )
            for name, slope in growth.exponents.items()
            if name != "peak"
        ]
        _panel(sheet, FIRST_PANEL, top, f"seconds an image by {growth.against}", growth, seconds, seconds_text)
        peaks = [point.peak for point in growth.points if point.peak]
        if "peak" in growth.exponents:
            whole = _Line(name="peak", exponent=growth.exponents["peak"], values=peaks, colour=INK, width=3)
            _panel(sheet, SECOND_PANEL, top, f"peak of added memory by {growth.against}", growth, [whole], bytes_text)
    sheet.save(path)


def _panel(
    sheet: Sheet,
    left: float,
    top: float,
    title: str,
    growth: Growth,
    lines: Sequence[_Line],
    told: Callable[[float], str],
) -> None:
    xs = [point.x for point in growth.points]
    values = [value for line in lines for value in line.values]
    across = _Scale(low=min(xs), high=max(xs), start=left + 14, stop=left + PANEL_WIDTH - 14)
    middle, reach = math.sqrt(min(values) * max(values)), math.sqrt(max(values) / min(values)) * 1.3
    reach = max(reach, math.sqrt(10))  # a decade at least, or what hardly changes would look steep
    up = _Scale(low=middle / reach, high=middle * reach, start=top + PANEL_HEIGHT, stop=top)
    sheet.text(left, top - 22, title, size=HEADING)
    for value in up.ticks():
        sheet.line([(left, up(value)), (left + PANEL_WIDTH, up(value))], GRID)
        sheet.text(left - 8, up(value), told(value), anchor="rm", size=SMALL, colour=SOFT)
    for x in xs:
        sheet.line([(across(x), top), (across(x), top + PANEL_HEIGHT)], GRID)
        sheet.text(across(x), top + PANEL_HEIGHT + 6, _count_text(x), anchor="ma", size=SMALL, colour=SOFT)
    sheet.text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT + 24, growth.against, anchor="ma", size=SMALL, colour=SOFT)
    for line in lines:
        places = [(across(x), up(value)) for x, value in zip(xs, line.values, strict=True)]
        sheet.line(places, line.colour, line.width)
        for place in places:
            sheet.dot(*place, line.colour)
    _labels(sheet, left + PANEL_WIDTH + 8, top, [(up(line.values[-1]), line) for line in lines])


def _labels(sheet: Sheet, x: float, top: float, ends: Sequence[tuple[float, _Line]]) -> None:
    """Names and powers at the lines' ends, moved apart where they would lie on one another."""
    lines = sorted(ends, key=lambda end: end[0])
    free = top
    places = []
    for y, _ in lines:
        places.append(max(y, free))
        free = places[-1] + LABEL_HEIGHT
    for index, (_, line) in enumerate(lines):
        # What would lie below the panel is moved up, and what is above it too.
        y = min(places[index], top + PANEL_HEIGHT - LABEL_HEIGHT * (len(lines) - 1 - index))
        end = sheet.text(x, y, f"{line.name}  x", colour=line.colour)
        sheet.text(end + 1, y - 6, f"{round(line.exponent, 2) + 0.0:.2f}", size=SUPERSCRIPT, colour=line.colour)


def draw_comparisons(comparisons: Sequence[Comparison], path: str | os.PathLike[str]) -> None:
    """A PNG with a bar for each variant of each case: seconds an image, the longest of a case over the whole width.

    At the bar: seconds, times the baseline, and the smallest and largest such ratio of all repetitions, which the thin
    line over the bar's end shows as well.
    """
    parts = [(part, list(cases)) for part, cases in groupby(comparisons, key=lambda one: one.part)]
    lines = sum(len(one.seconds) + 1.6 for one in comparisons) + 1.8 * len(parts) + 2
    sheet = Sheet(WIDTH, lines * LINE_HEIGHT)
    y = float(LINE_HEIGHT)
    said = "seconds an image; grey: the baseline, blue: faster, orange: slower; in brackets: all repetitions"
    sheet.text(24, y, said, colour=SOFT)
    for part, cases in parts:
        y += LINE_HEIGHT * 1.8
        sheet.text(24, y, part, size=HEADING)
        for one in cases:
            y += LINE_HEIGHT * 1.2
            sheet.text(24, y, one.case)
            y = _bars(sheet, y, one) + LINE_HEIGHT * 0.4
    sheet.save(path)


def _bars(sheet: Sheet, y: float, one: Comparison) -> float:
    """The bars of one case below y; where they end."""
    baseline = one.median(one.baseline)
    longest = max(max(one.median(variant), baseline * one.spread(variant)[1]) for variant in one.seconds)
    for variant in one.seconds:
        y += LINE_HEIGHT
        seconds, ratio = one.median(variant), one.ratio(variant)
        colour = BASELINE if variant == one.baseline else FASTER if ratio < 1 else SLOWER
        end = BAR_LEFT + BAR_WIDTH * seconds / longest
        sheet.text(BAR_LEFT - 10, y, variant, anchor="rm", colour=SOFT)
        sheet.box(BAR_LEFT, y - BAR_HEIGHT / 2, end, y + BAR_HEIGHT / 2, colour)
        said = seconds_text(seconds)
        if variant != one.baseline:
            least, most = (BAR_LEFT + BAR_WIDTH * baseline * edge / longest for edge in one.spread(variant))
            sheet.line([(least, y), (most, y)], INK)
            end = max(end, most)
            said += "   {:.2f}x  ({:.2f} to {:.2f})".format(ratio, *one.spread(variant))
        sheet.text(end + 10, y, said)
    return y
