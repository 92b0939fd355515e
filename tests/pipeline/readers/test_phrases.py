"""Names of a vocabulary as nouns of captions: compounds, further words, WordNet, models of spaCy, dropped words."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_wordnet import write_wordnet

from pipeline.readers.captions import NamesInCaption, NamesInPhrases, NounsInCaption
from pipeline.readers.names import NameReader, NameSettings, parse_name_words
from pipeline.readers.phrases import SpacyPhrases, TextBlobPhrases
from pipeline.readers.samples import Sample, meta_text

NAMES = ("person", "dog", "house", "hot dog", "traffic light", "car")


def found(caption: str, **settings: Any) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Return the text of each mention by name, and the dropped words."""
    options = {"names": NAMES, "caption_parser": "nouns"} | settings
    sample = Sample(index=0, key="a", image=b"", meta=meta_text({"txt": caption}))
    names = NameReader(NameSettings(caption_field="txt", **options))(sample)
    assert names.caption is not None
    return {m.name: [names.caption[a:b] for a, b in m.spans] for m in names.mentions}, names.dropped


@pytest.mark.parametrize(
    ("caption", "mentions", "dropped"),
    [
        ("a dog house beside two dogs", {"dog": ["dogs"], "house": ["house"]}, ()),
        ("a house dog", {"dog": ["dog"]}, ()),
        ("traffic lights and a red traffic light", {"traffic light": ["traffic lights", "traffic light"]}, ()),
        ("a man eats a hot dog", {"hot dog": ["hot dog"]}, ("man",)),
        ("People on a wooden bench; the bench is old", {"person": ["People"]}, ("bench",)),
        ("", {}, ()),
    ],
)
def test_a_name_is_the_noun_that_a_phrase_is_about(
    caption: str, mentions: dict[str, list[str]], dropped: tuple[str, ...]
) -> None:
    assert found(caption) == (mentions, dropped)


def test_without_the_setting_captions_are_read_as_before() -> None:
    """Words of a name count wherever they stand, and nothing is listed as dropped."""
    assert found("a dog house by a lake", caption_parser="words") == ({"dog": ["dog"], "house": ["house"]}, ())


def test_further_words_stand_for_their_name() -> None:
    words = {"person": ("man", "woman"), "car": ("fire engine",)}
    for parser in ("words", "nouns"):
        mentions, _ = found("two men, a person and fire engines", name_words=words, caption_parser=parser)
        assert mentions == {"person": ["men", "person"], "car": ["fire engines"]}
    names = NamesInCaption(("dog", "house"), {"house": ("dog",)})("a dog").mentions
    assert [mention.name for mention in names] == ["dog"], "a name takes precedence over a further word"


def test_nouns_without_a_vocabulary_are_those_of_the_parser() -> None:
    captions = ("Dogs beside a dog, and the dog's bowl on red grass.", "A fire hydrant, two ties.", "x y z")
    for caption in captions:
        assert NounsInCaption(TextBlobPhrases())(caption) == NounsInCaption()(caption)
    assert found("an old fire hydrant", names=()) == ({"fire hydrant": ["fire hydrant"]}, ())


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let NLTK read the small WordNet, and forget it after the test."""
    corpus = pytest.importorskip("nltk.corpus")
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    monkeypatch.setattr("nltk.data.path", [str(write_wordnet(tmp_path))])  # NLTK reads below these folders only
    reader = WordNetCorpusReader(str(tmp_path / "corpora" / "wordnet"), omw_reader=object())
    monkeypatch.setattr(corpus, "wordnet", reader)
    yield
    for file in reader._data_file_map.values():
        file.close()


@pytest.mark.usefixtures("wordnet")
@pytest.mark.parametrize(
    ("caption", "mentions", "dropped"),
    [
        ("an automobile", {"car": ["automobile"]}, ()),
        ("two men and a puppy", {"person": ["men"], "dog": ["puppy"]}, ()),
        ("a bicycle rider", {"person": ["bicycle rider"]}, ()),
        ("a mouse and a table", {}, ("mouse", "table")),
    ],
)
def test_a_noun_stands_for_the_nearest_more_general_name(
    caption: str, mentions: dict[str, list[str]], dropped: tuple[str, ...]
) -> None:
    assert found(caption, synonyms="wordnet") == (mentions, dropped)


@pytest.mark.usefixtures("wordnet")
def test_the_nearest_name_and_the_first_sense_count() -> None:
    assert found("a puppy, a mouse", synonyms="wordnet", names=("animal", "dog"))[0] == {
        "dog": ["puppy"],
        "animal": ["mouse"],
    }
    assert found("a puppy", synonyms="wordnet", names=("animal", "entity"))[0] == {"animal": ["puppy"]}


def test_a_missing_wordnet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = pytest.importorskip("nltk.corpus")

    class Missing:
        def ensure_loaded(self) -> None:
            raise LookupError("Resource wordnet not found")

    monkeypatch.setattr(corpus, "wordnet", Missing())
    with pytest.raises(ValueError, match=r"is not installed on this machine: .* python -m nltk\.downloader wordnet"):
        NamesInPhrases(NAMES, TextBlobPhrases(), wordnet=True)


class Token:
    """A token as spaCy has it."""

    def __init__(self, number: int, text: str, start: int, part: str, lemma: str) -> None:
        self.i, self.text, self.idx, self.pos_, self.lemma_ = number, text, start, part, lemma
        self.lower_ = text.lower()

    def __len__(self) -> int:
        return len(self.text)


class Chunk(list[Token]):
    """A noun chunk whose root is its last token."""

    root: Token


def chunks_of(caption: str, *chunks: str) -> list[Chunk]:
    """Return chunks that are written as `word/PART[/lemma] …`."""
    parsed, end, number = [], 0, 0
    for chunk in chunks:
        tokens = Chunk()
        for item in chunk.split():
            text, part, *lemma = item.split("/")
            start = caption.index(text, end)
            end, number = start + len(text), number + 1
            tokens.append(Token(number, text, start, part, lemma[0] if lemma else text.lower()))
        tokens.root = tokens[-1]
        parsed.append(tokens)
    return parsed


def test_noun_chunks_of_spacy_are_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Articles, numbers, pronouns and possessors are no part of a noun; a lemma is its singular."""
    caption = "The old fire hydrants beside the man's red car and them"
    chunks = chunks_of(
        caption,
        "The/DET old/ADJ fire/NOUN hydrants/NOUN/hydrant",
        "the/DET man/NOUN 's/PART red/ADJ car/NOUN",
        "them/PRON/they",
    )
    loaded: list[str] = []

    def load(model: str, **_: Any) -> Any:
        loaded.append(model)
        return lambda text: types.SimpleNamespace(noun_chunks=iter(chunks if text == caption else ()))

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    names = NameSettings(caption_field="txt", caption_parser="en_core_web_sm")
    mentions = NounsInCaption(SpacyPhrases("en_core_web_sm"))(caption).mentions
    assert [(m.name, [caption[a:b] for a, b in m.spans]) for m in mentions] == [
        ("fire hydrant", ["fire hydrants"]),
        ("car", ["car"]),
    ]
    assert found(caption, caption_parser="en_core_web_sm") == ({"car": ["car"]}, ("fire hydrant",))
    assert found("nothing", caption_parser="en_core_web_sm") == ({}, ())
    assert names
    assert set(loaded) == {"en_core_web_sm"}


def test_a_missing_spacy_or_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match="'en_core_web_sm' is a model of spaCy, which is not installed"):
        SpacyPhrases("en_core_web_sm")

    def load(model: str, **_: Any) -> None:
        raise OSError("[E050] Can't find model")

    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load))
    with pytest.raises(ValueError, match=r"spaCy cannot load this model \(\[E050\].*download en_core_web_sm"):
        SpacyPhrases("en_core_web_sm")


def models() -> Iterator[str]:
    """Yield the model of spaCy that is installed, if any."""
    try:
        import spacy.util
    except ImportError:
        return
    yield from (name for name in spacy.util.get_installed_models() if name.startswith("en_"))


def test_a_real_model_of_spacy_finds_the_nouns_of_a_caption() -> None:
    model = next(models(), None)
    if model is None:
        pytest.skip("no English model of spaCy is installed")
    caption = "Three men with ties walk their small dog past a fire hydrant."
    mentions = NounsInCaption(SpacyPhrases(model))(caption).mentions
    assert [mention.name for mention in mentions] == ["man", "tie", "dog", "fire hydrant"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_parser": "../model"}, r"caption_parser '../model': expected words, nouns, or the name of a model"),
        ({"caption_field": None, "caption_parser": "nouns"}, "expected a caption_field as well"),
        ({"synonyms": "wordnet"}, "expected names, and a caption_parser other than words"),
        ({"synonyms": "wordnet", "names": (), "caption_parser": "nouns"}, "expected names, and a caption_parser"),
        ({"synonyms": "thesaurus"}, "synonyms 'thesaurus': expected none or wordnet"),
        ({"name_words": {"cat": ("kitten",)}}, "name_words: 'cat' is not among the names"),
        ({"name_words": {"dog": ("Dog",)}}, "expected each name once"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NameSettings(**({"names": NAMES, "caption_field": "txt"} | settings))


def test_further_words_on_a_command_line_are_a_json_object() -> None:
    assert parse_name_words('{"person": ["man", " old  woman"], "car": []}') == {
        "person": ("man", "old woman"),
        "car": (),
    }
    for text in ("{", "[]", '{"person": "man"}', '{"person": [1]}', "[" * 100_000):
        with pytest.raises(ValueError, match=r'expected a JSON object .* such as \{"person"'):
            parse_name_words(text)
