"""SigLIP and SigLIP 2: dense features without mixing, sigmoid probabilities, and what their texts need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_checkpoints import change_json
from small_clip import drop_weight
from small_siglip import LENGTH, PATCH, SIDE, write_siglip
from transformers import PreTrainedTokenizerFast

from diffseg.clip.clip import Clip, load_clip
from diffseg.clip.transformers_layouts import siglip_text
from diffseg.model.layout import CheckpointError

GRID = SIDE // PATCH
KINDS = ("siglip", "siglip2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_siglip(tmp_path_factory.mktemp("models") / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def clips(folders: dict[str, Path]) -> dict[str, Clip]:
    return {kind: load_clip(folder) for kind, folder in folders.items()}


def pictures(side: int = SIDE, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def image_embedding(clip: Clip, prepared: torch.Tensor) -> torch.Tensor:
    """Return the embedding of whole images by the model's own code, from patches that are cut one by one."""
    if clip.layout.model.config.model_type == "siglip":
        return clip.layout.model.get_image_features(prepared, interpolate_pos_encoding=True).pooler_output
    cells = [
        [image[:, y : y + PATCH, x : x + PATCH].permute(1, 2, 0).flatten() for y in steps for x in steps]
        for image, steps in ((image, range(0, image.shape[-1], PATCH)) for image in prepared)
    ]
    patches = torch.stack([torch.stack(of_image) for of_image in cells])
    grid = prepared.shape[-1] // PATCH
    shapes, mask = torch.tensor([[grid, grid]] * len(prepared)), torch.ones(patches.shape[:2])
    features = clip.layout.model.get_image_features(patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    return features.pooler_output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_only_the_mixing_differs_from_the_embedding_of_the_image(kind: str, side: int, clips: dict[str, Clip]) -> None:
    """Tokens of the model's last block, mixed by its head's attention, give the embedding. Dense features are those of
    a last block whose attention is masked to the diagonal, and of a head that sees one token."""
    clip = clips[kind]
    vision, prepared = clip.layout.model.vision_model, clip.preprocess(pictures(side))
    last, seen = vision.encoder.layers[-1], list[torch.Tensor]()
    with torch.no_grad():
        handle = last.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
        embedding = image_embedding(clip, prepared)
        handle.remove()
        states, tokens = seen[0], vision.post_layernorm(seen[1])
        _, weights = vision.head.attention(vision.head.probe.expand(len(tokens), -1, -1), tokens, tokens)
        torch.testing.assert_close(clip.layout.project(weights @ tokens)[:, 0], embedding, rtol=0, atol=2e-5)
        diagonal = torch.zeros(tokens.shape[1], tokens.shape[1]).fill_diagonal_(1).log()
        unmixed = vision.post_layernorm(last(states, attention_mask=diagonal[None, None]))
        torch.testing.assert_close(clip.layout.values(prepared), unmixed, rtol=0, atol=2e-5)
        each = [vision.head(unmixed[:, place : place + 1]) for place in range(unmixed.shape[1])]
        torch.testing.assert_close(clip.layout.dense(prepared), torch.stack(each, dim=1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "positions"), [(SIDE, 4), (2 * SIDE, 8), (25, 6), (PATCH, 4)])
def test_any_size_of_image_has_whole_patches(kind: str, side: int, positions: int, clips: dict[str, Clip]) -> None:
    features = clips[kind].dense_features(pictures(side, 1))
    assert features.shape == (1, 24, positions, positions)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1, positions, positions))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_sigmoids_of_the_models_own_scale_and_bias(kind: str, clips: dict[str, Clip]) -> None:
    """Each name is judged by itself: no other name and no distractor changes it."""
    clip = clips[kind]
    probabilities = clip.probabilities(pictures(), [["cat", "red shirt"], ["cat"]])
    vectors, features = clip.name_vectors(["cat", "red shirt"]).double(), clip.dense_features(pictures()).double()
    logits = np.exp(2.3) * torch.einsum("td,bdhw->bthw", vectors, features) - 3
    expected = 1 / (1 + (-logits).exp())
    expected[1, 1] = 0
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(clip.probabilities(pictures(), [["cat"]] * 2, distractors=["red"])[1, 0], probabilities[1, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_padded_to_the_length_of_training(
    kind: str, clips: dict[str, Clip], folders: dict[str, Path]
) -> None:
    """The vector of a text is read at the last token. A long text is cut, and capitals make no difference."""
    clip, tokenizer = clips[kind], PreTrainedTokenizerFast.from_pretrained(folders[kind])
    ids = tokenizer("a photo of the red cat", padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = clip.layout.model.get_text_features(ids).pooler_output
        torch.testing.assert_close(clip.layout.embed_texts(["A photo of  the RED cat"]), expected)
        assert torch.isfinite(clip.layout.embed_texts(["cat " * 100, ""])).all()
        dashed, joined = clip.layout.embed_texts(["a T-shirt.", "a tshirt"])
    assert torch.equal(dashed, joined) == (kind == "siglip"), "only the first release was trained without punctuation"


def test_an_end_token_that_the_configuration_asks_for_follows_the_text(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """In the files of SigLIP 2 it may stand in tokenizer.json, in tokenizer_config.json or in both."""
    folder = Path(shutil.copytree(folders["siglip2"], tmp_path / "changed"))
    vectors = []
    for _ in range(2):
        change_json(folder / "tokenizer_config.json", add_eos_token=True, add_bos_token=False)
        vectors.append(load_clip(folder).layout.embed_texts(["a red cat"]).detach())
        change_json(folder / "tokenizer.json", post_processor=None)
    assert torch.equal(*vectors)
    change_json(folder / "tokenizer_config.json", add_eos_token=False)
    assert not torch.equal(load_clip(folder).layout.embed_texts(["a red cat"]), vectors[0])


def test_a_tokenizer_may_be_a_sentencepiece_model(tmp_path: Path) -> None:
    """The first release has spiece.model. The end token comes after the text, and again as padding."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = write_siglip(tmp_path, "siglip")
    (folder / "tokenizer.json").unlink()
    texts = iter(["a cat", "at a cat"] * 20)
    options = {"vocab_size": 8, "hard_vocab_limit": False, "bos_id": -1, "pad_id": -1, "eos_id": 1, "unk_id": 2}
    options |= {"model_type": "char", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_prefix=str(folder / "spiece"), **options)
    clip = load_clip(folder)
    with torch.no_grad():
        cat, same = clip.layout.embed_texts(["cat", " CAT! "])
    assert torch.equal(cat, same)
    assert torch.isfinite(clip.layout.embed_texts(["a cat " * 10])).all()


def test_the_text_of_each_release() -> None:
    assert siglip_text(" A  T-shirt.", without_punctuation=True) == "a tshirt"
    assert siglip_text(" A  T-shirt.", without_punctuation=False) == "a t-shirt."


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no words": (lambda f: (f / "tokenizer.json").unlink(), r"looked for tokenizer\.json or spiece\.model; found"),
    "other bad words": (
        lambda f: (f / "tokenizer.json").rename(f / "spiece.model"),
        "pip install sentencepiece protobuf|its files do not load",
    ),
    "bad words": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer of .*: its files do not load"),
    "no padding": (
        lambda f: change_json(f / "tokenizer_config.json", pad_token=None),
        "its tokenizer has no token for padding",
    ),
    "no head": (
        lambda f: change_json(f / "config.json", vision_config={"vision_use_head": False}),
        "vision_use_head is false; expected a head",
    ),
    "a weight": (lambda f: drop_weight(f, "logit_bias"), "its files lack weights: logit_bias"),
    "many patches": (
        lambda f: change_json(f / "config.json", vision_config={"num_patches": 10**9}),
        r"num_patches is 1000000000; expected an integer from 1 to 65536",
    ),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "Only safetensors are loaded: pickled .bin and .ckpt files can run code",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_siglip_is_refused(damage: str, folders: dict[str, Path], tmp_path: Path) -> None:
    inflict, message = DAMAGES[damage]
    folder = Path(shutil.copytree(folders["siglip2"], tmp_path / "changed"))
    inflict(folder)
    with pytest.raises(CheckpointError, match=message):
        load_clip(folder)
