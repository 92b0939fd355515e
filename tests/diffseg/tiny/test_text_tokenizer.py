"""The tokenizer of captions gives the same tokens as CLIP's own class."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import CLIPTokenizer

from diffseg.tiny.recipe.text_model import build_tokenizer
from diffseg.tiny.recipe.text_settings import training_caption
from diffseg.tiny.recipe.tokenizer import CONTEXT_TOKENS, END, START, caption_tokenizer, split_word
from diffseg.tiny.scenes.vocabulary import NOUNS, Caption, caption_vocabulary

WORDS = caption_tokenizer()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """The tokenizer after it was saved and loaded again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(WORDS).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_captions_have_the_same_tokens_as_with_clip(clip: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        classes = rng.choice(len(NOUNS), size=rng.integers(0, 8), replace=False).tolist()
        caption = training_caption(rng, classes, clean=True)
        ids, token_classes = WORDS.encode(caption)
        expected = clip(caption.text, padding="max_length", max_length=CONTEXT_TOKENS)
        assert ids.tolist() == expected.input_ids
        for noun in caption.classes:  # the tokens of a class decode to its noun
            assert clip.decode(ids[token_classes == noun]) == NOUNS[noun]
        assert (token_classes >= 0).sum() == sum(len(NOUNS[noun].split()) for noun in caption.classes)


def test_words_of_captions_are_one_token_and_other_words_are_split(clip: CLIPTokenizer) -> None:
    for word in caption_vocabulary():
        assert clip.tokenize(word) == [f"{word}</w>"]
        assert split_word(word, WORDS.merges) == [f"{word}</w>"]
    for word in ("zebra", "bandana", "redder", "skyscraper", "q"):
        tokens = clip.tokenize(word)
        assert tokens == split_word(word, WORDS.merges)
        assert "".join(tokens) == f"{word}</w>"
    assert len(clip.tokenize("zebra")) > 1
    assert clip.unk_token_id not in clip("naïve 東京 🦓", add_special_tokens=False).input_ids


def test_every_byte_has_a_token_and_ids_are_dense() -> None:
    assert sorted(WORDS.ids.values()) == list(range(len(WORDS.ids)))
    assert len(WORDS.ids) == 2 * 256 + len(WORDS.merges) + 2
    assert (WORDS.ids[START], WORDS.ids[END]) == (len(WORDS.ids) - 2, len(WORDS.ids) - 1)


def test_an_empty_caption_is_start_and_end_tokens_and_a_long_one_is_refused() -> None:
    ids, token_classes = WORDS.encode(Caption())
    assert ids.tolist() == [WORDS.ids[START]] + [WORDS.ids[END]] * 76
    assert (token_classes == -1).all()
    with pytest.raises(ValueError, match="77"):
        WORDS.encode(Caption((("sky", 0),) * 76))


def test_ids_are_those_with_which_the_weights_were_trained() -> None:
    tokens = ("!", "a", "a</w>", "red</w>", "sky</w>", END)
    assert [WORDS.ids[token] for token in tokens] == [0, 64, 320, 589, 609, 641]
