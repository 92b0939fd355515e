"""Vectors of names from frozen text encoders, with and without learnable tokens before the names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_clip import write_clip
from small_siglip import write_siglip

from diffseg.clip.text_model import TextModel, load_text_model
from diffseg.model.layout import TINY, CheckpointError

KINDS = ("clip", "siglip", "siglip2", "stable diffusion")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextModel]:
    folder = tmp_path_factory.mktemp("models")
    locations = {kind: str(write_siglip(folder / kind, kind)) for kind in ("siglip", "siglip2")}
    locations |= {"clip": str(write_clip(folder / "clip")), "stable diffusion": "tiny-text"}
    return {kind: load_text_model(location) for kind, location in locations.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_a_word_as_the_context_give_the_vector_of_the_text_with_that_word(
    kind: str, models: dict[str, TextModel]
) -> None:
    """The embedding of "a", five times, takes the place of five learnable tokens."""
    model = models[kind]
    (token,) = (
        set(model.tokenize(["a a red"])[0].tolist())
        & set(model.tokenize(["a a blue"])[0].tolist())
        & set(model.tokenize(["a"])[0].tolist()) - set(model.tokenize(["red"])[0].tolist())
    )
    with torch.no_grad():
        context = model.token_embedding(torch.tensor([token])).expand(5, -1)
        found = model.vectors(["red", "blue"], context)
        expected = model.encode(model.tokenize(["a a a a a red", "a a a a a blue"]), 5)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, model.vectors(["red", "blue"])), "the context changes the vectors"


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_context_has_a_gradient_and_the_encoder_is_left_as_it_was(
    kind: str, models: dict[str, TextModel]
) -> None:
    model = models[kind]
    bare = model.vectors(["red", "blue"]).detach()
    context = torch.zeros(3, model.width, requires_grad=True)
    model.vectors(["red", "blue"], context).square().sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.model.parameters())
    torch.testing.assert_close(model.vectors(["red", "blue"]), bare)


def test_the_vector_of_a_name_of_stable_diffusion_is_the_mean_of_its_own_tokens(models: dict[str, TextModel]) -> None:
    model = models["stable diffusion"]
    ids = model.tokenize(["red ball"])
    with torch.no_grad():
        states = model.model(ids).last_hidden_state[0]
        torch.testing.assert_close(model.vectors(["red ball", "sky"])[0], states[1:-1].mean(dim=0))


def test_a_name_that_leaves_no_room_for_the_context_is_refused(models: dict[str, TextModel]) -> None:
    model = models["clip"]
    name = " ".join(["red"] * 28)
    model.vectors([name], torch.zeros(2, model.width))
    with pytest.raises(ValueError, match="reads 32 tokens, of which 3 are learnable"):
        model.vectors([name], torch.zeros(3, model.width))


def test_models_without_a_text_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no text encoder"):
        load_text_model(str(TINY))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_text_model(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"looked for config.json of a CLIPModel"):
        load_text_model(str(tmp_path / "empty"))
