"""The results of `diffseg bench` as tables."""

from __future__ import annotations

from rich.table import Table

from jobs.benchmarks.growth import Growth
from jobs.benchmarks.measure import Comparison


def comparison_table(comparison: Comparison) -> Table:
    """Make a table with a row for each variant, and for each step of our variant."""
    table = Table(title=f"{comparison.part}: {comparison.case}", title_justify="left")
    for column in ("variant", "ms per image", "images/s", f"of {comparison.baseline}", "range"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant in comparison.seconds:
        seconds = comparison.median(variant)
        smallest, largest = comparison.spread(variant)
        table.add_row(
            variant,
            f"{1000 * seconds:.1f}",
            f"{1 / seconds:.2f}",
            f"{comparison.ratio(variant):.3f}",
            f"{smallest:.3f} to {largest:.3f}",
        )
    for step, seconds in comparison.steps.items():
        table.add_row(f"  ours: {step}", f"{1000 * seconds:.1f}", "", "", "")
    if comparison.notes:
        table.caption = ", ".join(f"{name} {value}" for name, value in comparison.notes.items())
    return table


def growth_table(growth: Growth) -> Table:
    """Make a table with a row for each point, and the fitted exponents below."""
    table = Table(title=f"growth: {growth.against}; ms per image, MB", title_justify="left", padding=0)
    steps = [step for step in growth.points[0].seconds if step in growth.exponents]
    for column in (growth.against, *steps, "peak"):
        table.add_column(column, justify="right")
    for point in growth.points:
        peak = "" if point.peak is None else f"{point.peak / 1e6:.0f}"
        x = f"{point.x / 1e6:g} M" if growth.against == "pixels" else f"{point.x:,}"
        table.add_row(x, *(_milliseconds(point.seconds[step]) for step in steps), peak)
    exponents = (f"{growth.exponents[name]:.2f}" if name in growth.exponents else "" for name in (*steps, "peak"))
    table.add_row("exponent", *exponents)
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"
