"""Find the names that a caption mentions, of a vocabulary or else its nouns, and where the caption mentions them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline.readers.phrases import Phrase, PhraseFinder, Span, TextBlobPhrases, load_textblob
from pipeline.readers.wordnet import WordNet

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


class Found(NamedTuple):
    """What a caption mentions.

    Attributes:
        mentions: Its names, sorted by their first position.
        dropped: Its nouns that stand for no name, each once, in the singular.
    """

    mentions: tuple[Mention, ...]
    dropped: tuple[str, ...] = ()


def clean(text: str) -> str:
    """Return the text in composed characters (NFC), with single spaces and without what UTF-8 cannot encode."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold(name: str) -> str:
    """Return the form that all spellings of a name share, such as `Traffic  Light` and `traffic light`."""
    return clean(name).casefold()


class NamesInCaption:
    """Finds the names of a vocabulary in captions: whole words, in singular or plural, and the longest name first."""

    def __init__(self, names: Sequence[str], words: Mapping[str, Sequence[str]] | None = None) -> None:
        """Set up for a vocabulary.

        Args:
            names: The vocabulary.
            words: Further words for a name, by the name.

        Raises:
            ValueError: The library that forms plurals is not installed.
        """
        english = load_textblob()
        self._names: dict[tuple[str, ...], str] = {}
        further = [(word, name) for name in names for word in (words or {}).get(name, ())]
        for pairs in ([(name, name) for name in names], further):  # names and their plurals take precedence
            for form, name in _with_plurals(english, pairs):
                if parts := tuple(_WORD.findall(fold(form))):
                    self._names.setdefault(parts, name)
        self._longest = max(map(len, self._names), default=0)

    def __call__(self, caption: str) -> Found:
        """Return the mentions, sorted by their first position. `caption` is a result of `clean`."""
        return Found(_group_by_name(self._find(caption)))

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

    def __init__(self, phrases: PhraseFinder | None = None) -> None:
        """Set up a parser, by default that of TextBlob. Raises ValueError if its library is not installed."""
        self._phrases = phrases or TextBlobPhrases()

    def __call__(self, caption: str) -> Found:
        """Return the mentions, sorted by their first position. `caption` is a result of `clean`."""
        phrases = self._phrases(caption)
        return Found(
            _group_by_name((phrase.name(phrase.first_noun), phrase.span(phrase.first_noun)) for phrase in phrases)
        )


class NamesInPhrases:
    """Finds the names of a vocabulary as nouns of captions: the longest end of a phrase that is one, in any number.

    `a red fire hydrant` mentions `fire hydrant`, or else `hydrant`, but not `fire`, which only says more about it.
    """

    def __init__(
        self,
        names: Sequence[str],
        phrases: PhraseFinder,
        *,
        words: Mapping[str, Sequence[str]] | None = None,
        wordnet: bool = False,
    ) -> None:
        """Set up for a vocabulary.

        Args:
            names: The vocabulary.
            phrases: Finds phrases.
            words: Further words for a name, by the name.
            wordnet: Whether a noun stands for the nearest more general name, by WordNet, if it is not a name itself.

        Raises:
            ValueError: A library or its data is not installed.
        """
        pairs = [(name, name) for name in names]
        pairs += [(word, name) for name in names for word in (words or {}).get(name, ())]
        self._phrases, self._names = phrases, dict[str, str]()
        for form, name in _with_plurals(load_textblob(), pairs):
            self._names.setdefault(fold(form), name)
        self._wordnet = WordNet((fold(word), name) for word, name in pairs) if wordnet else None

    def __call__(self, caption: str) -> Found:
        """Return the mentions, and the nouns that stand for no name. `caption` is a result of `clean`."""
        named: list[tuple[str, Span]] = []
        dropped: dict[str, None] = {}
        for phrase in self._phrases(caption):
            found = self._name_of(phrase)
            if found is None:
                dropped[phrase.name(phrase.first_noun)] = None
            else:
                named.append(found)
        return Found(_group_by_name(named), tuple(dropped))

    def _name_of(self, phrase: Phrase) -> tuple[str, Span] | None:
        places = range(len(phrase.words))
        for first in places:
            as_written = " ".join(word.text for word in phrase.words[first:])
            for form in (as_written, phrase.name(first)):
                if (name := self._names.get(fold(form))) is not None:
                    return name, phrase.span(first)
        if self._wordnet is not None:
            for first in places:
                if (name := self._wordnet.name_of(phrase.name(first))) is not None:
                    return name, phrase.span(first)
        return None


def _with_plurals(english: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of a form and its name: first the forms themselves, which take precedence, then their plurals."""
    return [*pairs, *((_plural(english, form), name) for form, name in pairs)]


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
