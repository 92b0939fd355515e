"""The closed vocabulary of captioned scenes, and captions that name some of its nouns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["NOUNS", "OBJECTS", "STUFF", "Caption", "compose", "words_of_captions"]

STUFF = ("sky", "grass", "water", "sand", "snow", "brick wall", "road", "lava")
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
NOUNS = STUFF + OBJECTS
"""18, half of them of two words; a noun's place here is its class."""

PREFIXES = ("a photo of", "a picture of", "a scene with", "an image showing", "there is")
EMPTY = 0.12  # share of empty captions, with which masks without names are made


@dataclass(frozen=True)
class Caption:
    """A caption in pieces.

    Attributes:
        pieces: words and commas in order, each with the class that its noun names; −1 where it is of no noun.
    """

    pieces: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        return " ".join(piece for piece, _ in self.pieces).replace(" ,", ",")

    @property
    def classes(self) -> tuple[int, ...]:
        """Of the nouns, in the order of their first mention."""
        return tuple(dict.fromkeys(noun for _, noun in self.pieces if noun >= 0))


def compose(rng: np.random.Generator, classes: Sequence[int]) -> Caption:
    """A caption of all of `classes` in random order, or, at times or where there are none, the empty one."""
    if not len(classes) or rng.random() < EMPTY:
        return Caption()
    pieces: list[tuple[str, int]] = []
    if rng.random() < 0.5:
        pieces += [(word, -1) for word in PREFIXES[rng.integers(len(PREFIXES))].split()]
    for place, noun in enumerate(rng.permutation(classes)):
        if place:
            pieces.append(("and" if rng.random() < 0.4 else ",", -1))
        pieces += [(word, int(noun)) for word in NOUNS[noun].split()]
    return Caption(tuple(pieces))


def words_of_captions() -> list[str]:
    """Every word and comma that a caption can hold, sorted."""
    return sorted({word for phrase in (*NOUNS, *PREFIXES, "and", ",") for word in phrase.split()})
