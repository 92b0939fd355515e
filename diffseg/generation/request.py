"""Requests for generated images."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = 2**63
"""Number of possible seeds, which start at 0."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """An image to generate.

    Attributes:
        prompt: The text that the image shows. It alone conditions the image, together with the seed.
        classes: The names that pixels may get, at least one. No name may repeat another in upper or lower case. They
            need not be words of the prompt.
        seed: Seed of the image's noise, 0 to 2⁶³ − 1. Nothing else in the image is random.
    """

    prompt: str
    classes: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        if not self.classes or any(not name.strip() for name in self.classes):
            raise ValueError(f"classes={list(self.classes)}: expected at least one name, and no empty ones")
        folded = [name.casefold() for name in self.classes]
        if repeated := [name for name, key in zip(self.classes, folded, strict=True) if folded.count(key) > 1]:
            raise ValueError(f"classes={list(self.classes)}: {repeated[0]!r} is repeated; expected each name once")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed={self.seed}: expected 0 to {SEEDS - 1}")
