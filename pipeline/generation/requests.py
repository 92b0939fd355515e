"""Turns rows of PROMPTS into shards of requests.

A request asks for one image, whose seed depends only on its key and on the seed of the run. A shard carries its
requests itself, so that a worker reads no other file, and its version is a digest of them. A row of PROMPTS that asks
for many images is one entry in each of the shards that they are in.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pipeline.digest import short_digest
from pipeline.generation.prompts import PromptRow
from pipeline.readers.captions import NamesInCaption, clean, fold
from pipeline.readers.names import MAX_CAPTION_CHARACTERS, NameSettings
from pipeline.readers.samples import Shard, shorten
from pipeline.storage import SourceError

MAX_IMAGES = 10_000_000
"""Largest number of images of a run."""
SLUG_CHARACTERS = 40
"""Largest number of characters of a prompt that the keys of its images begin with."""
MAX_KEY_CHARACTERS = 200
"""Largest number of characters of the key of a row of PROMPTS."""
MAX_ERROR_PROMPT = 200
"""Largest number of characters of an unusable prompt that its row shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Some images of one prompt.

    Attributes:
        key: What their keys begin with.
        prompt: The prompt.
        classes: The classes of their label maps, in the order of the vocabulary.
        first: Number of the first image, from 0.
        count: Number of images, at least 1.
        status: Status of their rows: "ok", or why they cannot be generated.
        error: The reason as a sentence; "" if the status is "ok".
    """

    key: str
    prompt: str
    classes: tuple[str, ...] = ()
    first: int = 0
    count: int = 1
    status: str = "ok"
    error: str = ""

    def to_json(self) -> str:
        """Return the entry as a line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def of(cls, line: str) -> Entry:
        """Return the entry of a line that `to_json` made."""
        values = json.loads(line)
        return cls(**values | {"classes": tuple(values["classes"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One image to generate.

    Attributes:
        index: Place in its shard, from 0.
        key: Its key, which no other image of the run has.
        entry: The entry that it belongs to.
    """

    index: int
    key: str
    entry: Entry

    def seed(self, run_seed: int) -> int:
        """Return the seed of its noise, 0 to 2⁶³ − 1, which depends on the seed of the run and on its key alone."""
        return int.from_bytes(sha256(f"{run_seed}\0{self.key}".encode()).digest()[:8], "big") >> 1


def requests_of(shard: Shard) -> Iterator[Request]:
    """Yield the requests of a shard in their order."""
    index = 0
    for entry in map(Entry.of, shard.files):
        for number in range(entry.first, entry.first + entry.count):
            yield Request(index=index, key=f"{entry.key}-{number:04d}", entry=entry)
            index += 1


def vocabulary_of(rows: Iterable[PromptRow]) -> tuple[str, ...]:
    """Return the classes that rows list, each once regardless of capitals, in the order of their first mention."""
    names: dict[str, str] = {}
    for row in rows:
        for name in _listed(row.classes) or ():
            names.setdefault(fold(name), name)
    return tuple(names.values())


def template_entries(naming: NameSettings, template: str, count: int) -> list[Entry]:
    """Return an entry for each name: `count` images of the template with the name in place of its {}.

    Raises:
        ValueError: The template gives an unusable prompt.
    """
    prompts = {name: clean(template.replace("{}", name)) for name in naming.names}
    if problem := next(filter(None, map(_problem, prompts.values())), ""):
        raise ValueError(f"template {shorten(_without_controls(template), 60)!r}: {problem}")
    return [Entry(key=_key_of(prompt), prompt=prompt, classes=(name,), count=count) for name, prompt in prompts.items()]


def entries_of(rows: Sequence[PromptRow], naming: NameSettings, count: int) -> list[Entry]:
    """Return an entry for each row of PROMPTS.

    Args:
        rows: The rows.
        naming: The vocabulary, and further words for its names.
        count: Number of images of a row that gives no count.

    Raises:
        SourceError: Two rows have the same key.
        ValueError: The library that finds names in prompts is not installed.
    """
    reader = _RowReader(naming, count)
    taken = Counter[str]()
    places: dict[str, str] = {}
    entries = []
    for row in rows:
        entry = reader.entry(row)
        if _given_key(row) and (other := places.setdefault(entry.key, row.place)) != row.place:
            raise SourceError(
                f"{other} and {row.place} have the key {shorten(entry.key, 60)!r}; expected each key once"
            )
        if entry.count > 0:
            entries.append(dataclasses.replace(entry, first=taken[entry.key]))
            taken[entry.key] += entry.count
    return entries


class _RowReader:
    """Checks rows of PROMPTS and finds the classes in their prompts."""

    def __init__(self, naming: NameSettings, count: int) -> None:
        self._names = {fold(name): name for name in naming.names}
        self._find = NamesInCaption(naming.names, naming.name_words)
        self._count = count

    def entry(self, row: PromptRow) -> Entry:
        """Return the entry of a row, with the reason if it cannot be used."""
        prompt = row.prompt if isinstance(row.prompt, str) else ""
        cleaned = clean(prompt)
        shown = shorten(_without_controls(cleaned), MAX_ERROR_PROMPT)
        key = _given_key(row) or _key_of(cleaned)
        count, error = self._count_of(row.count)
        if not error:
            error = _problem(cleaned) if isinstance(row.prompt, str | None) else "the prompt is not a text"
        if error:
            return Entry(key=key, prompt=shown, count=count, status="bad_prompt", error=f"{row.place}: {error}")
        classes, error = self._classes(cleaned, row.classes)
        if error:
            return Entry(key=key, prompt=shown, count=count, status="bad_names", error=f"{row.place}: {error}")
        return Entry(key=key, prompt=cleaned, classes=classes, count=count)

    def _count_of(self, value: Any) -> tuple[int, str]:
        """Return the number of images, and what is wrong with it, or ""."""
        if value is None:
            return self._count, ""
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) > MAX_IMAGES:
            return 1, f"the count is {shorten(text, 60)!r}; expected a number of images from 0 to {MAX_IMAGES:,}"
        return int(text), ""

    def _classes(self, prompt: str, value: Any) -> tuple[tuple[str, ...], str]:
        """Return the classes of a row in the order of the vocabulary, and what is wrong with them, or ""."""
        mentioned = {mention.name for mention in self._find(prompt).mentions}
        listed = _listed(value)
        if listed is None:
            return (), f"the classes are {shorten(str(value), 60)!r}; expected a list of names, or names with commas"
        if unknown := [name for name in listed if fold(name) not in self._names]:
            names = shorten(", ".join(self._names.values()), 300)
            return (), f"the class {shorten(unknown[0], 60)!r} is not among the names: {names}"
        wanted = {self._names[fold(name)] for name in listed}
        if absent := sorted(wanted - mentioned):
            return (), f"the prompt does not mention the class {absent[0]!r}, so its image would hardly show it"
        classes = wanted or mentioned
        if not classes:
            return (), f"the prompt mentions none of the names: {shorten(', '.join(self._names.values()), 300)}"
        return tuple(name for name in self._names.values() if name in classes), ""


def _listed(value: Any) -> list[str] | None:
    """Return the names in a cell of the column classes; None if it holds something else."""
    if isinstance(value, str):
        value = value.split(",")
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return None
    return [cleaned for name in value if (cleaned := clean(name))]


def _problem(prompt: str) -> str:
    """Return what is wrong with a cleaned prompt, or ""."""
    if not prompt:
        return "the prompt is empty"
    if len(prompt) > MAX_CAPTION_CHARACTERS:
        return (
            f"the prompt has {len(prompt):,} characters; expected at most {MAX_CAPTION_CHARACTERS:,}, and text "
            "encoders read only its first 77 tokens"
        )
    controls = [character for character in prompt if unicodedata.category(character) == "Cc"]
    return f"the prompt holds the control character U+{ord(controls[0]):04X}" if controls else ""


def _without_controls(text: str) -> str:
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" else c for c in text)


def _given_key(row: PromptRow) -> str:
    """Return the key that a row gives, cleaned, or "" if it gives none."""
    return "" if row.key is None else shorten(_without_controls(clean(str(row.key))), MAX_KEY_CHARACTERS)


def _key_of(prompt: str) -> str:
    """Return what the keys of a prompt's images begin with: its first words, and a digest that tells prompts apart."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.casefold())[:SLUG_CHARACTERS].strip("-")
    return f"{slug or 'prompt'}-{short_digest(prompt)[:8]}"


def shards_of_entries(entries: Iterable[Entry], images_per_shard: int) -> list[Shard]:
    """Return shards of `images_per_shard` requests each, in the order of the entries; the last may have fewer.

    Raises:
        SourceError: The entries ask for no image, or for more than `MAX_IMAGES`.
    """
    blocks: list[list[Entry]] = []
    free = total = 0
    for entry in entries:
        total += entry.count
        if total > MAX_IMAGES:
            raise SourceError(f"more than {MAX_IMAGES:,} images are asked for; divide the prompts among several runs")
        while entry.count:
            if not free:
                blocks.append([])
                free = images_per_shard
            part = min(free, entry.count)
            blocks[-1].append(dataclasses.replace(entry, count=part))
            entry = dataclasses.replace(entry, first=entry.first + part, count=entry.count - part)
            free -= part
    if not blocks:
        raise SourceError("the prompts ask for no image")
    return [_shard(number, tuple(entry.to_json() for entry in block)) for number, block in enumerate(blocks)]


def _shard(number: int, lines: tuple[str, ...]) -> Shard:
    version = short_digest("\n".join(lines))
    return Shard(name=f"generated-{number:06d}", url="", kind="prompts", files=lines, version=version)
