"""Find the names that a caption mentions, of a vocabulary or else its nouns, and where the caption mentions them."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Span = tuple[int, int]
"""A range of characters [start, end) of a caption."""

LONGEST_COMPOUND = 3
"""Words of the longest compound noun. Each noun of a longer sequence is a name by itself."""

_WORD = re.compile(r"\w+")
_SEPARATOR = re.compile(r"[\s-]+")
"""Separators within a name: `traffic-light` mentions `traffic light`, but `traffic, light` does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """A name that a caption mentions.

    Attributes:
        name: The name.
        spans: Where the caption mentions it, in singular or plural: at least one span, in order, without overlaps.
    """

    name: str
    spans: tuple[Span, ...]


def clean(text: str) -> str:
    """Return the text in composed characters (NFC), with single spaces and without what UTF-8 cannot encode."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold(name: str) -> str:
    """Return the form that all spellings of a name share, such as `Traffic  Light` and `traffic light`."""
    return clean(name).casefold()


class NamesInCaption:
    """Finds the names of a vocabulary in captions: whole words, in singular or plural, and the longest name first."""

    def __init__(self, names: Iterable[str]) -> None:
        """Set up for a vocabulary. Raises ValueError if the library that forms plurals is not installed."""
        english = _load_textblob()
        self._names: dict[tuple[str, ...], str] = {}
        for form, name in [(name, name) for name in names] + [(_plural(english, name), name) for name in names]:
            if words := tuple(_WORD.findall(fold(form))):
                self._names.setdefault(words, name)  # a name takes precedence over the plural of another one
        self._longest = max(map(len, self._names), default=0)

    def __call__(self, caption: str) -> tuple[Mention, ...]:
        """Return the mentions, sorted by their first position. `caption` is a result of `clean`."""
        return _group_by_name(self._find(caption))

    def _find(self, caption: str) -> Iterator[tuple[str, Span]]:
        words = [(match[0].casefold(), match.span()) for match in _WORD.finditer(caption)]
        place = 0
        while place < len(words):
            longest = _joined_words(caption, [span for _, span in words[place : place + self._longest]])
            for count in range(longest, 0, -1):
                name = self._names.get(tuple(word for word, _ in words[place : place + count]))
                if name is not None:
                    yield name, (words[place][1][0], words[place + count - 1][1][1])
                    place += count
                    break
            else:
                place += 1


class NounsInCaption:
    """Finds the nouns of English captions, in lower case and, if the singular is a known word, in the singular.

    Consecutive nouns form a compound: `fire hydrant`. The tagger is that of TextBlob, a lexicon with rules that is part
    of its package.
    """

    def __init__(self) -> None:
        """Set up the tagger. Raises ValueError if its library is not installed."""
        self._english = _load_textblob()

    def __call__(self, caption: str) -> tuple[Mention, ...]:
        """Return the mentions, sorted by their first position. `caption` is a result of `clean`."""
        return _group_by_name(self._find(caption))

    def _find(self, caption: str) -> Iterator[tuple[str, Span]]:
        nouns: list[tuple[str, Span]] = []  # consecutive nouns: part of speech and span
        end = 0
        for word, part in self._english.tag(caption):
            start = caption.find(word, end)
            if start < 0:  # the tagger has changed the word
                continue
            end = start + len(word)
            is_noun = part.startswith("NN") and len(word) > 1 and any(map(str.isalpha, word))
            if nouns and not (is_noun and caption[nouns[-1][1][1] : start] == " "):
                yield from self._names_of(caption, nouns)
                nouns = []
            if is_noun:
                nouns.append((part, (start, end)))
        yield from self._names_of(caption, nouns)

    def _names_of(self, caption: str, nouns: Sequence[tuple[str, Span]]) -> Iterator[tuple[str, Span]]:
        """Yield consecutive nouns as a compound, or each by itself if they are too many."""
        if len(nouns) > LONGEST_COMPOUND:
            for noun in nouns:
                yield from self._names_of(caption, [noun])
        elif nouns:
            start, end = nouns[0][1][0], nouns[-1][1][1]
            last_part, (last_start, _) = nouns[-1]
            last = caption[last_start:end].lower()
            if last_part in ("NNS", "NNPS"):
                last = self._singular(last)
            yield caption[start:last_start].lower() + last, (start, end)

    def _singular(self, word: str) -> str:
        # The rules turn `ties` into `ty`. A singular that the lexicon does not know as a noun is no improvement.
        singular = self._english.inflect.singularize(word)
        return singular if str(self._english.lexicon.get(singular, "")).startswith("NN") else word


def _load_textblob() -> Any:
    """Return the module `textblob.en` with its lexicon loaded. Raises ValueError if it is not installed."""
    try:
        from textblob import en
        from textblob.en import inflect  # noqa: F401 - makes `en.inflect` available
    except ImportError as error:
        raise ValueError(
            "captions are read with TextBlob, which is not installed on this machine: pip install "
            "'diffseg-pipeline[captions]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # textblob does not close the file of its lexicon
        # The first use loads the lexicon, and a second thread would see it incomplete.
        en.tag("a word")
    return en


def _plural(english: Any, name: str) -> str:
    return str(english.inflect.pluralize(name, classical=False))  # the classical plural of cow is kine


def _joined_words(caption: str, spans: Sequence[Span]) -> int:
    """Return the number of words, from the first on, that only spaces and hyphens separate."""
    for count, (before, after) in enumerate(pairwise(spans), start=1):
        if not _SEPARATOR.fullmatch(caption, before[1], after[0]):
            return count
    return len(spans)


def _group_by_name(named_spans: Iterable[tuple[str, Span]]) -> tuple[Mention, ...]:
    spans_by_name: dict[str, list[Span]] = {}
    for name, span in named_spans:
        spans_by_name.setdefault(name, []).append(span)
    return tuple(Mention(name=name, spans=tuple(spans)) for name, spans in spans_by_name.items())
