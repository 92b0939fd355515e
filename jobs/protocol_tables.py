"""A published protocol: what `diffseg evaluate --protocol` sets, and its table of published and measured figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from diffseg.segmentation import IGNORE
from jobs.printing import print_line
from pipeline.evaluation.evaluate import MethodScores
from pipeline.evaluation.protocols import PROTOCOLS, DatasetProtocol, ProtocolName
from pipeline.readers.names import NameSettings

NAMES_SHOWN = 5
"""Names without a class that a message lists."""

MATCHING_TEXTS = {
    "image": "Hungarian matching in each image, pixels summed by class over the images",
    "dataset": "one Hungarian matching for all images; ids from the class count on are dropped",
    "names": "names of segments are classes, nothing is matched",
}
BACKGROUND_TEXT = "; segments that no class takes are joined into background and all are matched again"


def chosen_protocol(
    name: ProtocolName | None, given: Mapping[str, object], naming: NameSettings
) -> DatasetProtocol | None:
    """Return the protocol of --protocol, None without one.

    Args:
        name: Value of the flag.
        given: Values of the flags that a protocol sets itself, by name; None or "none" where they were not given.
        naming: How the run names its segments.

    Raises:
        ValueError: One of these flags is given, or the protocol scores names and the run has none.
    """
    if name is None:
        return None
    wrong = [f"--{flag}" for flag, value in given.items() if value not in (None, "none")]
    if wrong:
        raise ValueError(f"--protocol {name} sets {', '.join(wrong)} itself; leave out one of them")
    chosen = PROTOCOLS[name]
    if chosen.protocol.matching == "names" and not naming:
        raise ValueError(f"--protocol {name} scores names, and this run has none; label with --names")
    return chosen


def protocol_document(
    name: ProtocolName, classes: Mapping[str, int], methods: Sequence[MethodScores], naming: NameSettings
) -> dict[str, Any]:
    """Return the figures by a protocol as plain values for the document.

    Args:
        name: The protocol.
        classes: Class by name of segments; empty if names are not scored.
        methods: Scores of the run and of the baselines.
        naming: How the run names its segments.
    """
    chosen = PROTOCOLS[name]
    scored = [method for method in methods if method.by_protocol is not None]
    return {
        "name": name,
        "matching": MATCHING_TEXTS[chosen.protocol.matching] + BACKGROUND_TEXT * chosen.protocol.background,
        "void": _void_text(chosen),
        "pixels": str(chosen.protocol.view),
        "images": chosen.images,
        "published": [dataclasses.asdict(figures) for figures in chosen.published],
        "measured": [
            {
                "name": method.name,
                "images": method.images,
                **{
                    score: dataclasses.asdict(figure)
                    for score, figure in zip(("accuracy", "miou"), method.by_protocol or (), strict=True)
                },
            }
            for method in scored
        ],
        "names_without_class": [word for word in naming.names if classes and word not in classes],
        "ids_mean_nothing": chosen.protocol.matching == "dataset" and not naming,
    }


def _void_text(chosen: DatasetProtocol) -> str:
    """Say what becomes of pixels that the layout ignores."""
    void = int(chosen.merges[-1])
    if void == IGNORE:
        return "not scored"
    is_background = chosen.protocol.background or void == chosen.unnamed
    return "background" if is_background else f"class {void}"


def print_protocol(console: Console, document: Mapping[str, Any]) -> None:
    """Print the figures by a protocol as a table, published ones first."""
    unknown = document["names_without_class"]
    if unknown:
        shown = ", ".join(unknown[:NAMES_SHOWN]) + ", …" * (len(unknown) > NAMES_SHOWN)
        text = f"{len(unknown)} names of the run are no class of {document['name']} ({shown})"
        print_line(console, text, "yellow")
    if document["ids_mean_nothing"]:
        text = "without names, an id means nothing beyond its image, so that one matching for all images says little"
        print_line(console, text, "yellow")
    caption = (
        f"{document['pixels']}; {document['matching']}; void: {document['void']}. Published figures: "
        + "; ".join(f"{figures['method']}: {figures['source']}" for figures in document["published"])
        + ". ± is half of a 95 % bootstrap interval over images."
    )
    title = f"Protocol {document['name']}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", min_width=100)
    for column in ("", "images", "accuracy %", "mIoU %"):
        table.add_column(column, justify="right" if column else "left")
    for figures in document["published"]:
        accuracy = "–" if figures["accuracy"] is None else f"{figures['accuracy']:.1f}"
        table.add_row(f"published: {figures['method']}", f"{document['images']:,}", accuracy, f"{figures['miou']:.1f}")
    table.add_section()
    for method in document["measured"]:
        cells = [
            f"{100 * method[score]['mean']:.1f} ±{100 * method[score]['half_width']:.1f}"
            for score in ("accuracy", "miou")
        ]
        table.add_row(method["name"], f"{method['images']:,}", *cells)
    console.print(table)
