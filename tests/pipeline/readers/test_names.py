"""Names from labels and captions in every field and form, and fields that give no usable names."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pytest

from pipeline.readers.captions import Mention, NamesInCaption, NounsInCaption, clean
from pipeline.readers.names import ImageNames, NameReader, NamesError, NameSettings, parse_names
from pipeline.readers.samples import DEFAULT_LIMITS, Sample, meta_text

THINGS = ("person", "traffic light", "cow")

CAPTIONS = {
    "A man riding a wave on top of a surfboard.": "man wave surfboard",
    "Two dogs and a cat sitting on a red couch next to a traffic light": "dog cat couch traffic_light",
    "A group of people standing around a kitchen with knives": "group person kitchen knife",
    "a plate of food with broccoli and carrots": "plate food broccoli carrot",
    "a red ball, a leopard and green bushes on the grass": "ball leopard bush grass",
    "Three men playing frisbee in the park near parked cars.": "man frisbee park car",
    "A fire hydrant sits on the side of the road": "fire_hydrant side road",
    "a woman holding an umbrella while walking her dog; the dog's leash is blue.": "woman umbrella dog leash",
    "a vase filled with flowers sitting on a wooden table": "vase flower table",
    "Two men with ties": "man tie",
    "a brick wall, lava, sand and a purple star": "brick_wall lava sand star",
}
"""Captions and their nouns as a person marked them."""


def sample(fields: dict[str, Any] | None = None, **columns: Any) -> Sample:
    return Sample(index=0, key="a", image=b"", meta=meta_text(fields if fields is not None else columns))


def labels_of(value: Any, names: tuple[str, ...] = THINGS) -> tuple[str, ...]:
    return NameReader(NameSettings(names=names, labels_field="labels"))(sample(labels=value)).names


def nouns(caption: str) -> set[str]:
    return {mention.name for mention in NounsInCaption()(caption).mentions}


def test_without_fields_every_image_may_have_every_name() -> None:
    assert NameReader(NameSettings(names=THINGS))(sample()) == ImageNames(names=THINGS)
    assert NameReader(NameSettings())(sample()).names == ()
    assert NameSettings(names=THINGS)
    assert NameSettings(caption_field="txt")
    assert not NameSettings()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["cow", "person"], ("person", "cow")),
        (["cow", "cow"], ("cow",)),
        ("cow, Traffic  LIGHT", ("traffic light", "cow")),
        ("cow\n", ("cow",)),
        ([2, 0, 2], ("person", "cow")),
        ("2,0", ("person", "cow")),
        (1, ("traffic light",)),
        ([], ()),
        ("", ()),
        (",,", ()),
    ],
)
def test_labels_are_names_or_numbers_in_any_order(value: Any, expected: tuple[str, ...]) -> None:
    assert labels_of(value) == expected


def test_a_name_that_is_a_number_is_a_name() -> None:
    assert labels_of("1", ("0", "7", "1")) == ("1",)
    assert labels_of([1], ("0", "7", "1")) == ("7",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            ["dog"],
            r'holds "dog" as a label; expected names of --names \(person, traffic light, cow\), or places .* to 2',
        ),
        (3, "holds 3 as a label"),
        (-1, "holds -1 as a label"),
        ([True], "holds true as a label"),
        ([1.0], "holds 1.0 as a label"),
        (None, "holds null as a label"),
        ([["cow"]], r'holds \["cow"\] as a label'),
        ({"cow": 1}, r'holds \{"cow": 1\} as a label'),
        ("9" * 5000, "as a label"),
        (["\ud800"], "as a label"),
        (["x" * 10**5], r"more characters\) as a label"),
    ],
)
def test_unknown_labels_are_named(value: Any, message: str) -> None:
    with pytest.raises(NamesError, match=f"^field 'labels': .*{message}") as raised:
        labels_of(value)
    assert len(str(raised.value).encode()) < 1000


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"labels": ["cow"]}, "labels"),  # a column of Parquet
        ({"cls": "2\n", "txt": "person"}, "cls"),  # members of a tar
        ({"json": {"labels": ["cow"], "cls": "person"}, "txt": "person"}, "labels"),
        ({"json": {"cls": "person"}, "cls": "cow"}, "cls"),  # the field of the sample has precedence
        ({"annotations": {"labels": "cow"}, "labels2": "person"}, "labels"),  # a struct column
    ],
)
def test_a_field_may_be_a_field_of_the_sample_or_of_its_json(fields: dict[str, Any], field: str) -> None:
    reader = NameReader(NameSettings(names=THINGS, labels_field=field))
    assert reader(sample(fields)).names == ("cow",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field 'labels': is not there; the sample's fields are none"),
        ({"json": {"a": 1}, "txt": ""}, "field 'labels': is not there; the sample's fields are json, txt, json.a"),
        ({"a.json": {"labels": 1}, "b.json": {"labels": 2}}, "field 'labels': is several there"),
        ({"json": "not JSON"}, "is not there; the sample's fields are json"),
        ({"json": {"\ud800": 0}}, r"fields are json, json\.\?"),
        ({"text": "x" * DEFAULT_LIMITS.max_meta_bytes}, "field 'labels': left out: .* bytes of JSON and text"),
    ],
)
def test_the_error_for_a_missing_field_lists_the_fields_of_the_sample(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NamesError, match=message):
        NameReader(NameSettings(names=THINGS, labels_field="labels"))(sample(fields))


def test_deeply_nested_json_is_an_error_of_its_row() -> None:
    hostile = Sample(index=0, key="a", image=b"", meta='{"labels":' + "[" * 10**5 + "]" * 10**5 + "}")
    with pytest.raises(NamesError, match="nested too deeply"):
        NameReader(NameSettings(names=THINGS, labels_field="labels"))(hostile)


def test_names_are_found_in_captions_as_whole_words_and_in_plural() -> None:
    reader = NameReader(NameSettings(names=(*THINGS, "light", "man"), caption_field="txt"))
    caption = "Cows and a COW, two\ttraffic-lights; people, men, a manhole and the sun's light. traffic, light"
    image_names = reader(sample(txt=caption))
    assert image_names.names == ("person", "traffic light", "cow", "light", "man")
    assert image_names.caption == clean(caption)
    spans = {m.name: [image_names.caption[start:end] for start, end in m.spans] for m in image_names.mentions}
    assert spans == {
        "person": ["people"],
        "traffic light": ["traffic-lights"],
        "cow": ["Cows", "COW"],
        "light": ["light", "light"],
        "man": ["men"],
    }


def test_spans_refer_to_the_returned_caption() -> None:
    """The returned caption has composed characters, single spaces, and nothing that a tokenizer rejects."""
    image_names = NameReader(NameSettings(names=("café", "straße"), caption_field="txt"))(
        sample(txt="  \ud800 Ein  Cafe\u0301 an der\n STRASSE ")
    )
    assert image_names.caption == "? Ein Café an der STRASSE"
    assert [(m.name, *(image_names.caption[a:b] for a, b in m.spans)) for m in image_names.mentions] == [
        ("café", "Café"),
        ("straße", "STRASSE"),
    ]


def test_without_names_the_nouns_of_a_caption_are_used() -> None:
    caption = "Dogs beside a dog, and the dog's bowl on red grass."
    image_names = NameReader(NameSettings(caption_field="txt"))(sample(txt=caption))
    assert image_names.names == ("dog", "bowl", "grass")
    assert image_names.mentions[0] == Mention(name="dog", spans=((0, 4), (14, 17), (27, 30)))
    assert all(caption[a:b].lower().startswith(m.name) for m in image_names.mentions for a, b in m.spans)


def test_nouns_of_captions_are_those_that_a_person_marked() -> None:
    """The tagger may miss or add one noun in twelve. It reads English only."""
    wrong = total = 0
    for caption, words in CAPTIONS.items():
        expected = {word.replace("_", " ") for word in words.split()}
        wrong += len(nouns(caption) ^ expected)
        total += len(expected)
    assert wrong <= total / 12


@pytest.mark.parametrize("caption", ["", "...", "42 & 7", "人が走る", "😀", "x" * 4000, "dog " * 1000, "('" * 2000])
def test_unusual_captions(caption: str) -> None:
    for settings in (NameSettings(caption_field="txt"), NameSettings(names=THINGS, caption_field="txt")):
        image_names = NameReader(settings)(sample(txt=caption))
        assert image_names.caption is not None
        assert len(set(image_names.names)) == len(image_names.names)
        spans = [span for mention in image_names.mentions for span in mention.spans]
        assert all(0 <= start < end <= len(image_names.caption) for start, end in spans)
        assert len(set(spans)) == len(spans)


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "holds null; expected a caption"), (["a"], r"\[\"a\"\]"), ("a" * 4001, "4001 characters")],
)
def test_fields_without_a_caption_are_named(value: Any, message: str) -> None:
    with pytest.raises(NamesError, match=f"field 'txt': .*{message}"):
        NameReader(NameSettings(caption_field="txt"))(sample(txt=value))


def test_a_large_vocabulary() -> None:
    names = tuple(f"thing {number}" for number in range(2_000))
    find = NamesInCaption(names)
    assert [mention.name for mention in find("a thing 77 beside thing 1999 " * 100).mentions] == [
        "thing 77",
        "thing 1999",
    ]


def test_threads_can_share_a_reader() -> None:
    """The lexicon of the tagger is loaded before threads use it."""
    reader = NameReader(NameSettings(caption_field="txt"))
    results: list[ImageNames] = []
    threads = [threading.Thread(target=lambda: results.append(reader(sample(txt="a cat and dogs")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [image_names.names for image_names in results] == [("cat", "dog")] * 8


def test_captions_without_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textblob", None)
    with pytest.raises(ValueError, match=r"pip install 'diffseg-pipeline\[captions\]'"):
        NameReader(NameSettings(caption_field="txt"))
    NameReader(NameSettings(names=THINGS, labels_field="cls"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("a", "a")}, "'a' and 'a': expected each name once"),
        ({"names": ("Straße", "STRASSE")}, "'Straße' and 'STRASSE': expected each name once"),
        ({"names": ("",)}, "expected 1 to 100 printable characters"),
        ({"names": (" a",)}, "without spaces around them"),
        ({"names": ("a\x00",)}, "printable"),
        ({"names": ("\ud800",)}, "printable"),
        ({"names": ("x" * 101,)}, "1 to 100"),
        ({"names": tuple(map(str, range(10_001)))}, "10001 names: expected at most 10000"),
        ({"labels_field": "cls"}, "labels_field 'cls': expected names as well"),
        ({"names": THINGS, "labels_field": "cls", "caption_field": "txt"}, "expected one of them"),
        ({"template": "a photo"}, r"expected one \{\}"),
        ({"template": "{} {}"}, r"expected one \{\}"),
        ({"template": "{0} {}"}, r"expected one \{\}"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NameSettings(**settings)


def test_names_on_a_command_line_are_separated_by_commas() -> None:
    assert parse_names(" person, traffic  light ,cow") == THINGS
    assert parse_names(" ") == ()
    with pytest.raises(ValueError, match="expected 1 to 100"):
        NameSettings(names=parse_names("a,,b"))


def test_a_prompt_is_the_caption_or_the_names() -> None:
    prompt = NameReader(NameSettings(caption_field="txt"))(sample(txt="a dog, two dogs")).prompt()
    assert (prompt.text, prompt.names, prompt.spans) == ("a dog, two dogs", ("dog",), (((2, 5), (11, 15)),))
    assert NameReader(NameSettings(names=THINGS))(sample()).prompt("a {}.").text == "a person, traffic light, cow."


def test_samples_of_these_tests_have_the_meta_of_the_readers() -> None:
    """`sample` writes the meta with the same function as the readers."""
    assert json.loads(sample(labels=["cow"]).meta) == {"labels": ["cow"]}
