"""Where names come from: a vocabulary for all images, labels of each image, or its caption."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.readers.captions import Mention, NamesInCaption, NounsOfCaption, clean, fold
from pipeline.readers.samples import Sample, shorten

if TYPE_CHECKING:
    from diffseg.model.text import Prompt

MOST_NAMES = 10_000
MOST_CHARACTERS = 100
"""Of a name."""

MOST_CAPTION_CHARACTERS = 4000
"""Of a caption. A text encoder reads 77 tokens."""


class NamesError(ValueError):
    """What a sample's field holds cannot be used: the message names the field, what was found and what to do."""


@dataclass(frozen=True, kw_only=True)
class NameSettings:
    """Which names segments may get."""

    names: tuple[str, ...] = ()
    """The vocabulary, person,car,… : the names that any segment may have, class 1 the first of them."""
    labels_field: str | None = None
    """Which of the names are in an image: a column (Parquet) with a list or a text with commas of them, or of their
    places from 0 on; a field of its JSON, or an extension such as cls (tar)."""
    caption_field: str | None = None
    """A column, JSON field or extension with an English caption: the names that occur in it, or its nouns where there
    are no names. Needs diffseg-pipeline[captions]."""
    template: str = "{}"
    """The prompt of an image without a caption, with its names behind commas in the place of {}."""

    def __post_init__(self) -> None:
        _check_names(self.names)
        if self.labels_field is not None and self.caption_field is not None:
            raise ValueError("labels_field and caption_field: expected one of them, as both say what is in an image")
        if self.labels_field is not None and not self.names:
            raise ValueError(f"labels_field {self.labels_field!r}: expected names as well, which the labels are of")
        if self.template.count("{}") != 1 or set(self.template.replace("{}", "")) & set("{}"):
            raise ValueError(f"template {self.template!r}: expected one {{}}, in whose place the names are put")

    def __bool__(self) -> bool:
        """Whether there is anything to name segments by."""
        return bool(self.names) or self.caption_field is not None


def parse_names(text: str) -> tuple[str, ...]:
    """`person, traffic light` as a tuple."""
    return tuple(clean(name) for name in text.split(",")) if text.strip() else ()


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) > MOST_NAMES:
        raise ValueError(f"{len(names)} names: expected at most {MOST_NAMES}")
    seen: dict[str, str] = {}
    for name in names:
        if not name or name != clean(name) or not name.isprintable() or len(name) > MOST_CHARACTERS:
            raise ValueError(
                f"name {shorten(name, MOST_CHARACTERS)!r}: expected 1 to {MOST_CHARACTERS} printable characters, "
                "without spaces around them"
            )
        if fold(name) in seen:
            raise ValueError(f"names {seen[fold(name)]!r} and {name!r}: expected each name once, whatever its capitals")
        seen[fold(name)] = name


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageNames:
    """What may be in one image.

    names: none of them twice; in the order of the vocabulary, or of a caption's nouns. May be empty: then all of the
    image is background. caption: None where no captions are read. mentions: of each name, where it stands in the
    caption; empty without one.
    """

    names: tuple[str, ...]
    caption: str | None = None
    mentions: tuple[Mention, ...] = ()

    def prompt(self, template: str = "{}") -> Prompt:
        """What the model is told of the image: the caption, or else the names in the place of the template's {}."""
        from diffseg.model.text import Prompt, prompt_of_names  # loads torch, which the command line need not wait for

        if self.caption is None:
            return prompt_of_names(self.names, template)
        spans = tuple(mention.spans for mention in self.mentions)
        return Prompt(text=self.caption, names=self.names, spans=spans, template=template)


class NameReader:
    """Samples to the names that they may show. Made once for a run; to be called from any thread."""

    def __init__(self, settings: NameSettings) -> None:
        """Raises ValueError where captions are to be read and the library for it is missing."""
        self._settings = settings
        self._places = {fold(name): place for place, name in enumerate(settings.names)}
        self._read: NamesInCaption | NounsOfCaption | None = None
        if settings.caption_field is not None:
            self._read = NamesInCaption(settings.names) if settings.names else NounsOfCaption()

    def __call__(self, sample: Sample) -> ImageNames:
        """Raises NamesError where the sample's field is missing or cannot be used."""
        settings = self._settings
        if settings.labels_field is not None:
            places = self._labels(settings.labels_field, _value(sample.meta, settings.labels_field))
            return ImageNames(names=tuple(settings.names[place] for place in sorted(set(places))))
        if settings.caption_field is None or self._read is None:
            return ImageNames(names=settings.names)
        caption = _caption(settings.caption_field, _value(sample.meta, settings.caption_field))
        mentions = self._read(caption)
        if settings.names:
            mentions = tuple(sorted(mentions, key=lambda mention: self._places[fold(mention.name)]))
        return ImageNames(names=tuple(mention.name for mention in mentions), caption=caption, mentions=mentions)

    def _labels(self, field: str, value: Any) -> Iterator[int]:
        """The places of labels among the names."""
        items = re.split(r"[,\n]", value) if isinstance(value, str) else value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, str) and not item.strip():
                continue
            place = self._place(item)
            if place is None:
                expected = (
                    f"names of --names ({_some(self._settings.names)}), or places from 0 to {len(self._places) - 1}"
                )
                raise NamesError(f"{_quoted(field, item)} as a label; expected {expected}")
            yield place

    def _place(self, item: Any) -> int | None:
        if isinstance(item, str):
            known = self._places.get(fold(item))
            if known is not None or not re.fullmatch(r"\s*[0-9]{1,9}\s*", item):
                return known
            item = int(item)
        is_place = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(self._places)
        return item if is_place else None


def _value(meta: str, field: str) -> Any:
    """The field of that name, or else that of the one JSON object among the fields which has it."""
    try:
        fields = json.loads(meta) if meta else {}
    except RecursionError as error:
        raise NamesError(f"field {field!r}: cannot be read, as the sample's JSON is nested too deeply") from error
    if field in fields:
        return fields[field]
    found = [value[field] for value in fields.values() if isinstance(value, dict) and field in value]
    if len(found) == 1:
        return found[0]
    if "__note__" in fields:
        raise NamesError(f"field {field!r}: {fields['__note__']}")
    inner = [f"{name}.{key}" for name, value in fields.items() if isinstance(value, dict) for key in value]
    there = _some([*fields, *inner]) if fields else "none"
    raise NamesError(f"field {field!r}: is {'several' if found else 'not'} there; the sample's fields are {there}")


def _caption(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise NamesError(f"{_quoted(field, value)}; expected a caption")
    if len(value) > MOST_CAPTION_CHARACTERS:
        raise NamesError(
            f"field {field!r}: holds {len(value)} characters; a caption has at most {MOST_CAPTION_CHARACTERS}"
        )
    return clean(value)


def _quoted(field: str, value: Any) -> str:
    return f"field {field!r}: holds {shorten(clean(json.dumps(value, ensure_ascii=False)), 100)}"


def _some(names: Iterable[str]) -> str:
    return shorten(clean(", ".join(names)), 300)
