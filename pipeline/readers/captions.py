"""What a caption names: those of given names that occur in it, or else its nouns, and where in it they stand."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Span = tuple[int, int]
"""First character, and the one behind the last, of a caption."""

LONGEST_COMPOUND = 3
"""Words. More nouns in a row than this are each a noun of its own."""

_WORD = re.compile(r"\w+")
_WITHIN = re.compile(r"[\s-]+")
"""What may stand between the words of a name: `traffic light` is found in `traffic-light`, not in `traffic, light`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """A name and where in the caption it stands, plurals included; at least one span, in order, none within another."""

    name: str
    spans: tuple[Span, ...]


def clean(text: str) -> str:
    """Composed characters (NFC), one space between words, and nothing that is no UTF-8."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold(name: str) -> str:
    """What two spellings of a name have in common: `Traffic  Light` and `traffic light` are the same."""
    return clean(name).casefold()


class NamesInCaption:
    """Those of the names that occur in a caption: whole words, in singular or plural, the longest where several do."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises ValueError where the library that knows plurals is missing."""
        english = _library()
        self._names: dict[tuple[str, ...], str] = {}
        for form, name in [(name, name) for name in names] + [(_plural(english, name), name) for name in names]:
            if words := tuple(_WORD.findall(fold(form))):
                self._names.setdefault(words, name)  # a name is rather itself than another one's plural
        self._longest = max(map(len, self._names), default=0)

    def __call__(self, caption: str) -> tuple[Mention, ...]:
        """Mentions in the order of the names' first places. caption: as `clean` leaves it."""
        return _mentions(self._found(caption))

    def _found(self, caption: str) -> Iterator[tuple[str, Span]]:
        words = [(match[0].casefold(), match.span()) for match in _WORD.finditer(caption)]
        place = 0
        while place < len(words):
            most = _joined(caption, [span for _, span in words[place : place + self._longest]])
            for count in range(most, 0, -1):
                name = self._names.get(tuple(word for word, _ in words[place : place + count]))
                if name is not None:
                    yield name, (words[place][1][0], words[place + count - 1][1][1])
                    place += count
                    break
            else:
                place += 1


class NounsOfCaption:
    """The nouns of an English caption in small letters and, where that is a known word, in singular.

    Nouns in a row are one: `fire hydrant`. TextBlob's tagger finds them, a lexicon with rules that is in its package.
    """

    def __init__(self) -> None:
        """Raises ValueError where the library is missing."""
        self._english = _library()

    def __call__(self, caption: str) -> tuple[Mention, ...]:
        """Mentions in the order of the nouns' first places. caption: as `clean` leaves it."""
        return _mentions(self._found(caption))

    def _found(self, caption: str) -> Iterator[tuple[str, Span]]:
        row: list[tuple[str, Span]] = []  # of nouns, each with whether it is a plural
        end = 0
        for word, part in self._english.tag(caption):
            start = caption.find(word, end)
            if start < 0:  # the tagger has changed it
                continue
            end = start + len(word)
            noun = part.startswith("NN") and len(word) > 1 and any(map(str.isalpha, word))
            if row and not (noun and caption[row[-1][1][1] : start] == " "):
                yield from self._row(caption, row)
                row = []
            if noun:
                row.append((part, (start, end)))
        yield from self._row(caption, row)

    def _row(self, caption: str, row: Sequence[tuple[str, Span]]) -> Iterator[tuple[str, Span]]:
        """The noun, or nouns, of some that stand side by side."""
        if len(row) > LONGEST_COMPOUND:
            for one in row:
                yield from self._row(caption, [one])
        elif row:
            start, end = row[0][1][0], row[-1][1][1]
            last = caption[row[-1][1][0] : end].lower()
            if row[-1][0] in ("NNS", "NNPS"):
                last = self._singular(last)
            yield caption[start : row[-1][1][0]].lower() + last, (start, end)

    def _singular(self, word: str) -> str:
        """Rules make `ty` of `ties`: what the lexicon does not know as a noun is no better than the plural."""
        singular = self._english.inflect.singularize(word)
        return singular if str(self._english.lexicon.get(singular, "")).startswith("NN") else word


def _library() -> Any:
    """textblob.en with its lexicon in memory."""
    try:
        from textblob import en
        from textblob.en import inflect  # noqa: F401 - so that it is there as an attribute
    except ImportError as error:
        raise ValueError(
            "captions are read with TextBlob, which is not installed on this machine: pip install "
            "'diffseg-pipeline[captions]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file of its lexicon to be closed by itself
        # Read when it is first used, and by two threads at once not whole.
        en.tag("a word")
    return en


def _plural(english: Any, name: str) -> str:
    return str(english.inflect.pluralize(name, classical=False))  # classical: kine, for cow


def _joined(caption: str, spans: Sequence[Span]) -> int:
    """How many of these words, from the first on, have nothing but spaces and hyphens between them."""
    for count, (before, after) in enumerate(pairwise(spans), start=1):
        if not _WITHIN.fullmatch(caption, before[1], after[0]):
            return count
    return len(spans)


def _mentions(found: Iterable[tuple[str, Span]]) -> tuple[Mention, ...]:
    spans: dict[str, list[Span]] = {}
    for name, span in found:
        spans.setdefault(name, []).append(span)
    return tuple(Mention(name=name, spans=tuple(places)) for name, places in spans.items())
