"""The name of a vocabulary that a noun stands for, by WordNet: a synonym, or the nearest more general word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MAX_STEPS = 8
"""Most steps from a noun to a more general one. `puppy` is two from `dog`, and `man` is two from `person`."""


class WordNet:
    """Maps nouns to the names of a vocabulary. It uses the corpus `wordnet` of NLTK, which the user has installed.

    Only the first, most frequent sense of a word counts, because a caption with `mouse` seldom means the device.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        """Look up the words of a vocabulary.

        Args:
            names: Pairs of a word and the name that it stands for; the first pair of a sense holds.

        Raises:
            ValueError: NLTK or its corpus is not installed.
        """
        try:
            from nltk.corpus import wordnet

            wordnet.ensure_loaded()  # here, because threads that load it together fail
        except (ImportError, LookupError) as error:
            raise ValueError(
                "synonyms wordnet: NLTK's corpus wordnet is not installed on this machine: pip install "
                "'diffseg-pipeline[captions]', and then python -m nltk.downloader wordnet"
            ) from error
        self._wordnet: Any = wordnet
        self._names: dict[str, str] = {}
        for word, name in names:
            if (sense := self._sense(word)) is not None:
                self._names.setdefault(sense.name(), name)

    def _sense(self, noun: str) -> Any:
        senses = self._wordnet.synsets(noun.replace(" ", "_"), "n")
        return senses[0] if senses else None

    def name_of(self, noun: str) -> str | None:
        """Return the name that a noun in the singular stands for, or None if it stands for none."""
        sense = self._sense(noun)
        senses = [] if sense is None else [sense]
        for _ in range(MAX_STEPS + 1):
            for sense in senses:
                if sense.name() in self._names:
                    return self._names[sense.name()]
            senses = [general for sense in senses for general in sense.hypernyms() + sense.instance_hypernyms()]
        return None
