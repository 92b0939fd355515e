"""Keys of names: computed once, by themselves, and from the tokens that a padded prompt would have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffseg.attention.layers import attention_layers
from diffseg.model import name_keys
from diffseg.model.checkpoint import Checkpoint, load_checkpoint
from diffseg.model.name_keys import NameKeys
from diffseg.model.text import EMPTY_PROMPT, Prompt, prompt_of_names


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Checkpoint:
    return load_checkpoint(checkpoints[request.param], text=True)


def keys_of(checkpoint: Checkpoint) -> NameKeys:
    assert checkpoint.text is not None
    return NameKeys(checkpoint.text, checkpoint.unet)


def test_tokens_are_those_of_a_padded_prompt(checkpoint: Checkpoint) -> None:
    text = checkpoint.text
    assert text is not None
    prompt = prompt_of_names(["cat", "an hat"], "a photo of {}")
    columns = [column for of_name in text.columns(prompt) for column in of_name]
    torch.testing.assert_close(text.embed_tokens(prompt), text.embed(prompt.text).context[0, columns])
    assert len(text.embed_tokens(EMPTY_PROMPT)) == 2, "the start and the end token"


def test_the_keys_of_a_vocabulary_are_computed_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, embedded = keys_of(checkpoint), list[str]()
    embed_tokens = keys.text.embed_tokens

    def counted(prompt: Prompt) -> torch.Tensor:
        embedded.append(prompt.text)
        return embed_tokens(prompt)

    monkeypatch.setattr(keys.text, "embed_tokens", counted)
    names = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(150)]
    first = keys.context([names, names])
    assert keys.context([names, names]) is first
    keys.context([names[:3], names[5:6]])
    keys.context([[*names, "new"]])
    assert embedded == ["", *names, "new"]


def test_keys_and_weights_of_images_with_different_names(checkpoint: Checkpoint) -> None:
    keys = keys_of(checkpoint)
    context = keys.context([("cat", "an hat"), (), ("sky",)], words=("wall", "Sky"))
    assert context.weights.shape[:2] == (3, 2 + 2)
    sums = context.weights.sum(dim=2)
    torch.testing.assert_close(sums, torch.tensor([[1.0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0]]))
    assert context.is_padding is not None
    layer = next(layer for layer in attention_layers(checkpoint.unet) if layer.module.is_cross_attention)
    embedded = torch.cat(
        [keys.text.embed_tokens(p) for p in (EMPTY_PROMPT, *(prompt_of_names([n]) for n in ("sky", "wall")))]
    )
    used = context.keys[layer.name][2][~context.is_padding[2]]
    with torch.no_grad():
        torch.testing.assert_close(used, layer.module.to_k(embedded))


def test_neither_order_nor_other_names_change_the_last_bits(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cat", "an hat", "sky", "wall"]
    expected = keys_of(checkpoint).context([names])
    other = keys_of(checkpoint)
    other.context([["wall", "road"], ["cat"]])
    monkeypatch.setattr(name_keys, "MOST_TOKENS", 3)  # so that the tables start over
    again = other.context([names])
    assert again.is_padding is None
    assert all(torch.equal(again.keys[layer], keys) for layer, keys in expected.keys.items())
    assert torch.equal(again.weights, expected.weights)
