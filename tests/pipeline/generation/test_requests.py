"""The division of prompts into shards of requests, keys and seeds, and prompts that cannot be used."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from pipeline.generation.prompts import PromptRow
from pipeline.generation.requests import (
    MAX_IMAGES,
    Entry,
    entries_of,
    requests_of,
    shards_of_entries,
    template_entries,
    vocabulary_of,
)
from pipeline.readers.names import NameSettings
from pipeline.readers.samples import Shard
from pipeline.storage import SourceError

NAMING = NameSettings(names=("dog", "cat", "traffic light"), name_words={"dog": ("puppy",)})


def row(prompt: Any, **fields: Any) -> PromptRow:
    return PromptRow(place="line 1", prompt=prompt, **fields)


def entry(prompt: Any, **fields: Any) -> Entry:
    (found,) = entries_of([row(prompt, **fields)], NAMING, 1)
    return found


def keys(shards: list[Shard]) -> list[str]:
    return [request.key for shard in shards for request in requests_of(shard)]


@pytest.mark.parametrize(
    ("prompt", "classes", "expected"),
    [
        ("two dogs and a traffic light", None, ("dog", "traffic light")),
        ("a traffic light, a CAT and a dog", None, ("dog", "cat", "traffic light")),
        ("a puppy", None, ("dog",)),
        ("a dog and a cat", "Cat", ("cat",)),
        ("a dog and a cat", ["cat", "dog", ""], ("dog", "cat")),
        ("a dog", "", ("dog",)),
    ],
)
def test_classes_are_those_of_the_row_or_those_that_the_prompt_mentions(
    prompt: str, classes: Any, expected: tuple[str, ...]
) -> None:
    found = entry(prompt, classes=classes)
    assert (found.status, found.classes) == ("ok", expected)


@pytest.mark.parametrize(
    ("prompt", "fields", "status", "error"),
    [
        ("", {}, "bad_prompt", "the prompt is empty"),
        ("  \t", {}, "bad_prompt", "the prompt is empty"),
        (None, {}, "bad_prompt", "the prompt is empty"),
        (7, {}, "bad_prompt", "the prompt is not a text"),
        ("dog " * 10_000, {}, "bad_prompt", "the prompt has 39,999 characters; expected at most 4,000"),
        ("a dog\x00", {}, "bad_prompt", "the control character U+0000"),
        ("a \x1b[2Jdog", {}, "bad_prompt", "the control character U+001B"),
        ("a dog", {"count": "many"}, "bad_prompt", "the count is 'many'"),
        ("a dog", {"count": -1}, "bad_prompt", "the count is '-1'"),
        ("a dog", {"count": 1.5}, "bad_prompt", "the count is '1.5'"),
        ("a dog", {"count": 10**9}, "bad_prompt", "the count is '1000000000'"),
        ("a house", {}, "bad_names", "mentions none of the names: dog, cat, traffic light"),
        (
            "a dog",
            {"classes": "horse"},
            "bad_names",
            "the class 'horse' is not among the names: dog, cat, traffic light",
        ),
        ("a dog", {"classes": ["dog", "cat"]}, "bad_names", "does not mention the class 'cat'"),
        ("a dog", {"classes": {"dog": 1}}, "bad_names", "expected a list of names"),
        ("a dog", {"classes": [1]}, "bad_names", "expected a list of names"),
    ],
)
def test_a_prompt_that_cannot_be_used_becomes_a_row_with_a_reason(
    prompt: Any, fields: dict[str, Any], status: str, error: str
) -> None:
    found = entry(prompt, **fields)
    assert (found.status, found.count) == (status, 1)
    assert found.error.startswith("line 1: ")
    assert error in found.error
    assert found.prompt.isprintable()
    assert len(found.prompt) < 300


def test_whole_counts_of_any_type_are_accepted() -> None:
    assert [entry("a dog", count=count).count for count in (3, "3", " 3 ", 3.0)] == [3, 3, 3, 3]
    assert entries_of([row("a dog", count=0)], NAMING, 1) == []


def test_shards_hold_a_fixed_number_of_requests_and_all_keys_differ() -> None:
    rows = [row("a dog", count=5), row("a cat"), row("a dog", count=3), row("")]
    shards = shards_of_entries(entries_of(rows, NAMING, 2), 4)
    found = [list(requests_of(shard)) for shard in shards]
    assert list(map(len, found)) == [4, 4, 4]
    assert [request.index for requests in found for request in requests] == [0, 1, 2, 3] * 3
    assert len(set(keys(shards))) == 12
    dogs = [key for key in keys(shards) if key.startswith("a-dog-")]
    assert [key[-4:] for key in dogs] == [f"{number:04d}" for number in range(8)], "equal prompts share their numbers"
    assert [shard.name for shard in shards] == ["generated-000000", "generated-000001", "generated-000002"]


def test_further_prompts_change_only_the_last_shard() -> None:
    few, more = (
        shards_of_entries(entries_of([row("a dog", count=5), row("a cat", count=count)], NAMING, 1), 4)
        for count in (2, 9)
    )
    assert few[0] == more[0]
    assert few[0].digest() == more[0].digest()
    assert few[1].digest() != more[1].digest()
    assert keys(more)[: len(keys(few))] == keys(few)


def test_a_seed_depends_on_the_key_and_the_seed_of_the_run_alone() -> None:
    def seeds(rows: list[PromptRow], size: int, run_seed: int) -> dict[str, int]:
        shards = shards_of_entries(entries_of(rows, NAMING, 1), size)
        return {request.key: request.seed(run_seed) for shard in shards for request in requests_of(shard)}

    dogs, cats = row("a dog", count=3), row("a cat", count=3)
    first = seeds([dogs, cats], 2, 0)
    assert seeds([cats, dogs], 5, 0) == first, "neither the order nor the shards matter"
    assert len(set(first.values()) | set(seeds([dogs, cats], 2, 1).values())) == 12
    assert all(0 <= seed < 2**63 for seed in first.values())
    assert first["a-dog-7dbdf68a-0000"] == 7_249_172_006_875_660_597, "seeds must not change between versions"


def test_a_row_can_have_a_key_of_its_own_which_no_other_row_has() -> None:
    rows = [row("a dog", key="x/1", count=2), PromptRow(place="line 2", prompt="a cat", key=7)]
    assert keys(shards_of_entries(entries_of(rows, NAMING, 1), 64)) == ["x/1-0000", "x/1-0001", "7-0000"]
    with pytest.raises(SourceError, match="line 1 and line 2 have the key '7'"):
        entries_of([row("a dog", key="7"), PromptRow(place="line 2", prompt="a cat", key=7)], NAMING, 1)


def test_rows_with_empty_keys_get_keys_from_their_prompts() -> None:
    rows = [PromptRow(place=f"line {line}", prompt="a dog", key=key) for line, key in enumerate(("", " ", None), 1)]
    shards = shards_of_entries(entries_of(rows, NAMING, 1), 64)
    assert keys(shards) == [f"a-dog-7dbdf68a-{number:04d}" for number in range(3)]


def test_a_template_gives_a_prompt_for_each_name() -> None:
    entries = template_entries(NAMING, "a photo of a {}", 2)
    assert [(each.prompt, each.classes, each.count) for each in entries] == [
        (f"a photo of a {name}", (name,), 2) for name in NAMING.names
    ]
    for template, message in (("a \x07{}", "control character"), ("a " * 3000 + "{}", "characters; expected at most")):
        with pytest.raises(ValueError, match=message):
            template_entries(NAMING, template, 1)


def test_the_vocabulary_of_a_file_is_in_the_order_of_its_classes() -> None:
    rows = [row("", classes="cat, Dog"), row("", classes=["dog", "sky"]), row("", classes=5), row("")]
    assert vocabulary_of(rows) == ("cat", "Dog", "sky")


def test_no_image_and_too_many_images_are_refused() -> None:
    with pytest.raises(SourceError, match="ask for no image"):
        shards_of_entries([], 64)
    with pytest.raises(SourceError, match="more than 10,000,000 images"):
        shards_of_entries([Entry(key="a", prompt="a", count=MAX_IMAGES), Entry(key="b", prompt="b")], MAX_IMAGES)


def test_parts_of_an_entry_follow_each_other() -> None:
    entries = [Entry(key="a", prompt="a", classes=("dog",), count=10)]
    parts = [Entry.of(line) for shard in shards_of_entries(entries, 4) for line in shard.files]
    assert [part.count for part in parts] == [4, 4, 2]
    assert all(before.first + before.count == after.first for before, after in pairwise(parts))
    assert {part.classes for part in parts} == {("dog",)}
