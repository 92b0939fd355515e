"""Nouns of captions with the words before them, by TextBlob's tagger or by a model of spaCy."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

Span = tuple[int, int]
"""A range of characters [start, end) of a caption."""

LONGEST_COMPOUND = 3
"""Words of the longest compound noun. Each noun of a longer sequence is a name by itself."""

_MODEL_NAME = re.compile(r"[A-Za-z][\w-]{0,100}")


class Word(NamedTuple):
    """A word of a phrase: its text in lower case, and where it stands in the caption."""

    text: str
    span: Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """A noun with the words before it that say more about it.

    Attributes:
        words: The words, at least one. The last is the noun itself, which all others qualify.
        first_noun: Place of the first word of the compound noun: 1 in `old fire hydrant`.
        singular: Singular of the last word, or the word itself if it has none.
    """

    words: tuple[Word, ...]
    first_noun: int
    singular: str

    def name(self, first: int) -> str:
        """Return the words from one of them on, in the singular."""
        return " ".join([word.text for word in self.words[first:-1]] + [self.singular])

    def span(self, first: int) -> Span:
        """Return where the words from one of them on stand in the caption."""
        return self.words[first].span[0], self.words[-1].span[1]


class PhraseFinder(Protocol):
    """Finds the phrases of a caption in their order. Several threads may call it."""

    def __call__(self, caption: str) -> Iterator[Phrase]:
        """Yield the phrases of a caption, which is a result of `pipeline.readers.captions.clean`."""
        ...


class TextBlobPhrases:
    """Consecutive nouns, after adjectives, by the tagger that is part of TextBlob: a lexicon with rules."""

    def __init__(self) -> None:
        """Set up the tagger. Raises ValueError if its library is not installed."""
        self._english = load_textblob()

    def __call__(self, caption: str) -> Iterator[Phrase]:
        """Yield the phrases of a caption in their order."""
        adjectives: list[Word] = []
        nouns: list[tuple[Word, str]] = []  # with their parts of speech
        end = 0
        for text, part in self._english.tag(caption):
            start = caption.find(text, end)
            if start < 0:  # the tagger has changed the word
                continue
            adjoining, end = caption[end:start] == " ", start + len(text)
            word = Word(text.lower(), (start, end))
            is_noun = part.startswith("NN") and len(text) > 1 and any(map(str.isalpha, text))
            if not (adjoining and (is_noun or not nouns)):
                yield from self._phrases(adjectives, nouns)
                adjectives, nouns = [], []
            if is_noun:
                nouns.append((word, part))
            else:
                yield from self._phrases(adjectives, nouns)
                nouns = []
                adjectives = [*adjectives, word] if part.startswith("JJ") else []
        yield from self._phrases(adjectives, nouns)

    def _phrases(self, adjectives: Sequence[Word], nouns: Sequence[tuple[Word, str]]) -> Iterator[Phrase]:
        """Yield consecutive nouns as a compound, or each by itself if they are too many."""
        if len(nouns) > LONGEST_COMPOUND:
            for noun in nouns:
                yield from self._phrases((), [noun])
        elif nouns:
            last, part = nouns[-1]
            singular = singular_of(self._english, last.text) if part in ("NNS", "NNPS") else last.text
            words = (*adjectives, *(word for word, _ in nouns))
            yield Phrase(words=words, first_noun=len(adjectives), singular=singular)


class SpacyPhrases:
    """The noun chunks of a spaCy model, such as en_core_web_sm, without pronouns and what follows the noun."""

    def __init__(self, model: str) -> None:
        """Load a model that the user has installed. Raises ValueError if it or spaCy is missing."""
        try:
            import spacy
        except ImportError as error:
            raise ValueError(
                f"caption_parser {model!r} is a model of spaCy, which is not installed on this machine: pip install "
                "spacy, and the model"
            ) from error
        try:
            # The name of a package and no path: a path could hold code of its own.
            self._parse = spacy.load(model, exclude=["ner"])
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(
                f"caption_parser {model!r}: spaCy cannot load this model ({error}); install it with `python -m spacy "
                f"download {model}`"
            ) from error
        self._lock = threading.Lock()  # a pipeline of spaCy is not documented to be safe in several threads

    def __call__(self, caption: str) -> Iterator[Phrase]:
        """Yield the phrases of a caption in their order."""
        with self._lock:
            chunks = list(self._parse(caption).noun_chunks)
        for chunk in chunks:
            root = chunk.root
            if root.pos_ not in ("NOUN", "PROPN"):
                continue
            before = [token for token in chunk if token.i <= root.i]
            count = sum(1 for _ in takewhile(lambda token: token.pos_ in ("ADJ", "NOUN", "PROPN"), reversed(before)))
            tokens = before[-count:]
            first = next(place for place in range(count) if all(token.pos_ != "ADJ" for token in tokens[place:]))
            words = tuple(Word(token.lower_, (token.idx, token.idx + len(token))) for token in tokens)
            yield Phrase(words=words, first_noun=first, singular=root.lemma_.lower() or root.lower_)


def is_model_name(name: str) -> bool:
    """Return True if a text can be the name of an installed model of spaCy."""
    return _MODEL_NAME.fullmatch(name) is not None


def load_textblob() -> Any:
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


def singular_of(english: Any, word: str) -> str:
    """Return the singular of a word in lower case.

    The rules turn `ties` into `ty`. A singular that the lexicon does not know as a noun is no improvement.
    """
    singular = str(english.inflect.singularize(word))
    return singular if str(english.lexicon.get(singular, "")).startswith("NN") else word
