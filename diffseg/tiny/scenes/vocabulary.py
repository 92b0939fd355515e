"""The closed vocabulary of captioned scenes, and the captions that are composed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["NOUNS", "OBJECTS", "STUFF", "Caption", "caption_vocabulary", "compose_caption"]

STUFF = ("sky", "grass", "water", "sand", "snow", "brick wall", "road", "lava")
"""Nouns of grounds."""
OBJECTS = (
    "red ball",
    "sun",
    "green bush",
    "striped flag",
    "checker board",
    "blue ribbon",
    "purple star",
    "wooden crate",
    "leopard",
    "pink flower",
)
"""Nouns of objects."""
NOUNS = STUFF + OBJECTS
"""All 18 nouns, half of which have two words; the index of a noun is its class."""

PREFIXES = ("a photo of", "a picture of", "a scene with", "an image showing", "there is")
"""Phrases with which a caption may begin."""
EMPTY_SHARE = 0.12
"""Share of empty captions; images are segmented without names by means of the empty caption."""


@dataclass(frozen=True)
class Caption:
    """A caption whose words are marked with the classes that they name.

    Attributes:
        pieces: Words and commas in order, each with the class of the noun that it belongs to, or −1.
    """

    pieces: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        """The caption as text."""
        return " ".join(piece for piece, _ in self.pieces).replace(" ,", ",")

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes of the nouns, in the order of their first mention."""
        return tuple(dict.fromkeys(noun for _, noun in self.pieces if noun >= 0))


def compose_caption(rng: np.random.Generator, classes: Sequence[int]) -> Caption:
    """Compose a caption that names all of `classes` in random order.

    The caption is empty with probability `EMPTY_SHARE`, and where `classes` is empty.
    """
    if not len(classes) or rng.random() < EMPTY_SHARE:
        return Caption()
    pieces: list[tuple[str, int]] = []
    if rng.random() < 0.5:
        pieces += [(word, -1) for word in PREFIXES[rng.integers(len(PREFIXES))].split()]
    for index, noun in enumerate(rng.permutation(classes)):
        if index:
            pieces.append(("and" if rng.random() < 0.4 else ",", -1))
        pieces += [(word, int(noun)) for word in NOUNS[noun].split()]
    return Caption(tuple(pieces))


def caption_vocabulary() -> list[str]:
    """Return every word that a caption can contain, and the comma, sorted."""
    return sorted({word for phrase in (*NOUNS, *PREFIXES, "and", ",") for word in phrase.split()})
