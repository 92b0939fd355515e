"""The names that segments of an image may get: a vocabulary for all images, the labels of an image, or its caption."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from pipeline.readers.captions import Found, Mention, NamesInCaption, NamesInPhrases, NounsInCaption, clean, fold
from pipeline.readers.phrases import SpacyPhrases, TextBlobPhrases, is_model_name
from pipeline.readers.samples import Sample, shorten

if TYPE_CHECKING:
    from diffseg.model.text import Prompt

MAX_NAMES = 10_000
"""Most names in a vocabulary."""
MAX_NAME_CHARACTERS = 100
"""Longest name, in characters."""
MAX_CAPTION_CHARACTERS = 4000
"""Longest caption, in characters. A text encoder reads 77 tokens."""

DROPPED_WORDS = "__dropped_words__"
"""Field of a row's `meta` with the nouns of its caption that stand for no name."""
_WORDS_EXAMPLE = 'a JSON object with a list of words for each name, such as {"person": ["man", "woman"]}'


class NamesError(ValueError):
    """A field of a sample gives no usable names. The message says which field, what it holds and what was expected."""


@dataclass(frozen=True, kw_only=True)
class NameSettings:
    """The names that segments may get, and the field of a sample that says which of them are in its image."""

    names: tuple[str, ...] = ()
    """Vocabulary, such as person,car: the names that any segment may get. The first name is class 1."""
    labels_field: str | None = None
    """Field that says which of the names are in an image: a Parquet column, or in a tar a field of the sample's JSON or
    an extension such as cls. It holds names or their numbers from 0, as a list or as text with commas."""
    caption_field: str | None = None
    """Field with an English caption: a Parquet column, a JSON field or an extension. A segment may get the names that
    occur in the caption, or without names its nouns. Needs diffseg-pipeline[captions]."""
    template: str = "{}"
    """Prompt for an image without a caption. Its names, separated by commas, replace the {}."""
    name_words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further words for names as a JSON object, such as {"person": ["man", "woman"]}: a caption with one of them
    mentions the name, and a CLIP scores each of them for the name."""
    caption_parser: str = "words"
    """What finds names in captions. words: the words of a name anywhere, or without names TextBlob's nouns. nouns: only
    nouns, by TextBlob, where `dog house` mentions no dog. The name of an installed model of spaCy, such as
    en_core_web_sm: only its noun chunks. With the last two, each row lists the nouns that stand for no name."""
    synonyms: Literal["none", "wordnet"] = "none"
    """wordnet: a noun of a caption that is no name stands for the nearest more general name, such as man for person, by
    the corpus of NLTK, if that is installed. Needs caption_parser."""

    def __post_init__(self) -> None:
        _check_names(self.names)
        if self.labels_field is not None and self.caption_field is not None:
            raise ValueError("labels_field and caption_field: expected one of them, since both say what is in an image")
        if self.labels_field is not None and not self.names:
            raise ValueError(f"labels_field {self.labels_field!r}: expected names as well, which the labels refer to")
        if self.template.count("{}") != 1 or set(self.template.replace("{}", "")) & set("{}"):
            raise ValueError(f"template {self.template!r}: expected one {{}}, which the names replace")
        self._check_words()

    def _check_words(self) -> None:
        for name, words in self.name_words.items():
            if name not in self.names:
                raise ValueError(f"name_words: {shorten(name, MAX_NAME_CHARACTERS)!r} is not among the names")
            _check_names((name, *words))
        if self.caption_parser not in ("words", "nouns") and not is_model_name(self.caption_parser):
            raise ValueError(
                f"caption_parser {self.caption_parser!r}: expected words, nouns, or the name of a model of spaCy"
            )
        if self.drops_words and self.caption_field is None:
            raise ValueError(f"caption_parser {self.caption_parser!r}: expected a caption_field as well")
        if self.synonyms not in ("none", "wordnet"):
            raise ValueError(f"synonyms {self.synonyms!r}: expected none or wordnet")
        if self.synonyms == "wordnet" and not (self.names and self.drops_words):
            raise ValueError(
                "synonyms wordnet maps nouns of captions to names: expected names, and a caption_parser other than "
                "words"
            )

    @property
    def drops_words(self) -> bool:
        """Whether rows list the nouns of their captions that stand for no name."""
        return self.caption_parser != "words"

    def __bool__(self) -> bool:
        """Return True if segments can get names."""
        return bool(self.names) or self.caption_field is not None


def parse_names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas, such as `person, traffic light`."""
    return tuple(clean(name) for name in text.split(",")) if text.strip() else ()


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) > MAX_NAMES:
        raise ValueError(f"{len(names)} names: expected at most {MAX_NAMES}")
    seen: dict[str, str] = {}
    for name in names:
        if not name or name != clean(name) or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
            raise ValueError(
                f"name {shorten(name, MAX_NAME_CHARACTERS)!r}: expected 1 to {MAX_NAME_CHARACTERS} printable "
                "characters, without spaces around them"
            )
        if fold(name) in seen:
            raise ValueError(
                f"names {seen[fold(name)]!r} and {name!r}: expected each name once, regardless of capitals"
            )
        seen[fold(name)] = name


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageNames:
    """The names that the segments of an image may get.

    Attributes:
        names: Distinct names, in the order of the vocabulary or of the nouns of the caption. If there are none, the
            whole image is background.
        caption: The caption, or None if no captions are read.
        mentions: For each name, where the caption mentions it; empty without a caption.
        dropped: Nouns of the caption that stand for no name, each once, in the singular.
    """

    names: tuple[str, ...]
    caption: str | None = None
    mentions: tuple[Mention, ...] = ()
    dropped: tuple[str, ...] = ()

    def prompt(self, template: str = "{}") -> Prompt:
        """Return the prompt of the image for the model: the caption, or else the template with the names."""
        from diffseg.model.text import Prompt, prompt_of_names  # loads torch, which the command line does not need

        if self.caption is None:
            return prompt_of_names(self.names, template)
        spans = tuple(mention.spans for mention in self.mentions)
        return Prompt(text=self.caption, names=self.names, spans=spans, template=template)


class NameReader:
    """Reads from a sample the names that its image may show. A run makes one reader, which all threads may call."""

    def __init__(self, settings: NameSettings) -> None:
        """Set up for a run. Raises ValueError if captions are to be read and their library is not installed."""
        self._settings = settings
        self._numbers = {fold(name): number for number, name in enumerate(settings.names)}
        self._find = None if settings.caption_field is None else _finder(settings)

    def __call__(self, sample: Sample) -> ImageNames:
        """Return the names of an image.

        Raises:
            NamesError: The field that the settings name is missing from the sample or cannot be used.
        """
        settings = self._settings
        if settings.labels_field is not None:
            numbers = self._labels(settings.labels_field, _field_value(sample.meta, settings.labels_field))
            return ImageNames(names=tuple(settings.names[number] for number in sorted(set(numbers))))
        if settings.caption_field is None or self._find is None:
            return ImageNames(names=settings.names)
        caption = _caption(settings.caption_field, _field_value(sample.meta, settings.caption_field))
        mentions, dropped = self._find(caption)
        if settings.names:
            mentions = tuple(sorted(mentions, key=lambda mention: self._numbers[fold(mention.name)]))
        names = tuple(mention.name for mention in mentions)
        return ImageNames(names=names, caption=caption, mentions=mentions, dropped=dropped)

    def with_prompt(self, sample: Sample) -> tuple[Sample, Prompt]:
        """Return the prompt of a sample, and the sample with the dropped words of its caption among its fields.

        Raises:
            NamesError: As when the reader is called.
        """
        names = self(sample)
        if self._settings.drops_words:
            sample = replace(sample, meta=_with_field(sample.meta, DROPPED_WORDS, names.dropped))
        return sample, names.prompt(self._settings.template)

    def _labels(self, field: str, value: Any) -> Iterator[int]:
        """Yield the numbers of the names that a labels field lists."""
        items = re.split(r"[,\n]", value) if isinstance(value, str) else value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, str) and not item.strip():
                continue
            number = self._number(item)
            if number is None:
                expected = (
                    f"names of --names ({_listing(self._settings.names)}), or places from 0 to {len(self._numbers) - 1}"
                )
                raise NamesError(f"{_quoted(field, item)} as a label; expected {expected}")
            yield number

    def _number(self, item: Any) -> int | None:
        """Return the number of the name that a label stands for, or None if it stands for none."""
        if isinstance(item, str):
            known = self._numbers.get(fold(item))
            if known is not None or not re.fullmatch(r"\s*[0-9]{1,9}\s*", item):
                return known
            item = int(item)
        is_number = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(self._numbers)
        return item if is_number else None


def _finder(settings: NameSettings) -> Callable[[str], Found]:
    """Return what finds names in captions. Raises ValueError if a library or its data is not installed."""
    if not settings.drops_words:
        return NamesInCaption(settings.names, settings.name_words) if settings.names else NounsInCaption()
    phrases = TextBlobPhrases() if settings.caption_parser == "nouns" else SpacyPhrases(settings.caption_parser)
    if not settings.names:
        return NounsInCaption(phrases)
    wordnet = settings.synonyms == "wordnet"
    return NamesInPhrases(settings.names, phrases, words=settings.name_words, wordnet=wordnet)


def parse_name_words(text: str) -> dict[str, tuple[str, ...]]:
    """Parse a JSON object of lists of words. Raises ValueError if it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shorten(text, 100)}: is not JSON ({error}); expected {_WORDS_EXAMPLE}") from error
    if not isinstance(value, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words) for words in value.values()
    ):
        raise ValueError(f"{shorten(text, 100)}: expected {_WORDS_EXAMPLE}")
    return {clean(name): tuple(map(clean, words)) for name, words in value.items()}


def _field_value(meta: str, field: str) -> Any:
    """Return the value of a field of a sample, or of the one JSON object among its fields that has this key.

    Args:
        meta: The JSON object of the fields of the sample, or "".
        field: The name of the field.

    Raises:
        NamesError: The field is missing, or several JSON objects have this key.
    """
    try:
        fields = json.loads(meta) if meta else {}
    except RecursionError as error:
        raise NamesError(f"field {field!r}: cannot be read, as the sample's JSON is nested too deeply") from error
    if field in fields:
        return fields[field]
    values = [value[field] for value in fields.values() if isinstance(value, dict) and field in value]
    if len(values) == 1:
        return values[0]
    if "__note__" in fields:
        raise NamesError(f"field {field!r}: {fields['__note__']}")
    inner = [f"{name}.{key}" for name, value in fields.items() if isinstance(value, dict) for key in value]
    present = _listing([*fields, *inner]) if fields else "none"
    raise NamesError(f"field {field!r}: is {'several' if values else 'not'} there; the sample's fields are {present}")


def _with_field(meta: str, field: str, value: Any) -> str:
    """Return a JSON object with one more field in front; the text of the other fields stays as it is."""
    return f"{{{json.dumps(field)}: {json.dumps(value, ensure_ascii=False)}, {meta[1:]}"


def _caption(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise NamesError(f"{_quoted(field, value)}; expected a caption")
    if len(value) > MAX_CAPTION_CHARACTERS:
        raise NamesError(
            f"field {field!r}: holds {len(value)} characters; a caption has at most {MAX_CAPTION_CHARACTERS}"
        )
    return clean(value)


def _quoted(field: str, value: Any) -> str:
    return f"field {field!r}: holds {shorten(clean(json.dumps(value, ensure_ascii=False)), 100)}"


def _listing(names: Iterable[str]) -> str:
    return shorten(clean(", ".join(names)), 300)
