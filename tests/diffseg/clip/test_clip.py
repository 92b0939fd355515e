"""CLIP at every position of an image: exact identities, names, and checkpoints that cannot be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_checkpoints import change_json
from small_clip import NAMES, PATCH, SIDE, drop_weight, write_clip
from transformers import CLIPTokenizer

from diffseg.clip.clip import Clip, load_clip
from diffseg.clip.layout import MEAN, STD
from diffseg.clip.templates import SHORT
from diffseg.model.files import fingerprint
from diffseg.model.layout import CheckpointError

GRID = SIDE // PATCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return write_clip(tmp_path_factory.mktemp("clip") / "random")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(folder)


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Path:
    """Return a copy that the test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "changed"))


def pictures(side: int = SIDE, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_values_mixed_by_the_last_layers_attention_give_the_embedding_of_the_image(clip: Clip) -> None:
    """The output projection is linear, so the dense features differ from the embedding only in the missing mixing."""
    prepared = clip.preprocess(pictures())
    vision = clip.layout.model.vision_model
    states = vision(prepared, output_hidden_states=True).hidden_states[-2]
    last = vision.encoder.layers[-1]
    layer, heads = last.self_attn, clip.layout.model.config.vision_config.num_attention_heads
    normed = last.layer_norm1(states)
    queries, keys, values = (
        project(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    weights = (queries @ keys.transpose(-1, -2) / values.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0]
    parts = layer.out_proj.weight.unflatten(1, (heads, -1))
    mixed = sum(weights[:, head, None] @ values[:, head] @ parts[:, head].T for head in range(heads))
    token = states[:, :1] + mixed + layer.out_proj.bias
    token = token + last.mlp(last.layer_norm2(token))
    pooled = clip.layout.model.visual_projection(vision.post_layernorm(token[:, 0]))
    whole = clip.layout.model.get_image_features(prepared).pooler_output
    torch.testing.assert_close(pooled, whole, rtol=0, atol=1e-5)


def test_each_position_has_a_vector_of_length_one(clip: Clip) -> None:
    features = clip.dense_features(pictures())
    assert features.shape == (2, clip.layout.model.config.projection_dim, GRID, GRID)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, GRID, GRID))


def test_dense_features_leave_the_embedding_of_the_image_bit_identical(clip: Clip) -> None:
    prepared = clip.preprocess(pictures())
    before = clip.layout.model.get_image_features(prepared).pooler_output
    clip.dense_features(pictures())
    clip.layout.values(prepared)
    assert torch.equal(clip.layout.model.get_image_features(prepared).pooler_output, before)


def test_positional_embeddings_are_not_interpolated_at_the_size_of_training(clip: Clip) -> None:
    vision = clip.layout.model.vision_model
    prepared = clip.preprocess(pictures())
    states, last = vision(prepared, output_hidden_states=True).hidden_states[-2], vision.encoder.layers[-1]
    expected = last.self_attn.v_proj(last.layer_norm1(states))[:, 1:]
    assert torch.equal(clip.layout.values(prepared), expected)
    assert torch.equal(prepared, ((pictures() + 1) / 2 - clip.layout.mean) / clip.layout.std)


@pytest.mark.parametrize(("side", "positions"), [(SIDE, 8), (2 * SIDE, 16), (50, 12), (SIDE // 2, 8), (PATCH, 8)])
def test_any_size_of_image_has_whole_patches(clip: Clip, side: int, positions: int) -> None:
    features = clip.dense_features(pictures(side, 1))
    assert features.shape[2:] == (positions, positions)
    assert torch.isfinite(features).all()


def test_probabilities_do_not_depend_on_the_scale_of_text_vectors(clip: Clip, folder: Path) -> None:
    scaled = load_clip(folder)
    scaled.layout.model.text_projection.weight.mul_(7)
    first, second = (network.probabilities(pictures(), [NAMES] * 2) for network in (clip, scaled))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_probabilities_follow_their_names_in_any_order(clip: Clip) -> None:
    order = [3, 1, 0, 5, 4, 2]
    probabilities = clip.probabilities(pictures(), [NAMES] * 2)
    reordered = clip.probabilities(pictures(), [[NAMES[index] for index in order]] * 2)
    torch.testing.assert_close(reordered, probabilities[:, order], rtol=0, atol=1e-6)


def test_each_image_has_its_own_names(clip: Clip) -> None:
    probabilities = clip.probabilities(pictures(count=3), [NAMES[:2], (), NAMES])
    assert probabilities.shape == (3, len(NAMES), GRID, GRID)
    assert not probabilities[0, 2:].any()
    assert not probabilities[1].any()
    assert (probabilities >= 0).all()
    assert (probabilities.sum(dim=1) <= 1 + 1e-6).all()
    alone = clip.probabilities(pictures(count=3)[:1], [NAMES[:2]])
    torch.testing.assert_close(alone[0], probabilities[0, :2], rtol=0, atol=1e-6)
    assert not clip.probabilities(pictures(count=1), [()]).any()
    single = clip.probabilities(pictures(count=1), [["red"]], distractors=())
    torch.testing.assert_close(single, torch.ones_like(single))


def test_the_vector_of_a_name_does_not_depend_on_other_names(clip: Clip, folder: Path) -> None:
    """It is the mean of the templates' vectors, each of length 1, and always has the same bits."""
    assert torch.equal(clip.name_vectors(NAMES)[2], load_clip(folder).name_vectors(["blue"])[0])
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = [tokenizer(template.format("blue"), return_tensors="pt").input_ids for template in SHORT]
    pooled = [clip.layout.model.get_text_features(ids).pooler_output[0] for ids in tokens]
    mean = torch.stack([vector / vector.norm() for vector in pooled]).mean(dim=0)
    torch.testing.assert_close(clip.name_vectors(["blue"])[0], mean / mean.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["x" * 1000, "人が走る", "", "{}", "<|endoftext|>"])
def test_unusual_names_have_finite_vectors(clip: Clip, name: str) -> None:
    assert torch.isfinite(clip.name_vectors([name])).all()


def test_colour_statistics_come_from_the_checkpoint(clip: Clip, changed: Path) -> None:
    assert clip.layout.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    (changed / "preprocessor_config.json").unlink()
    plain = load_clip(changed)
    assert plain.layout.mean.flatten().tolist() == pytest.approx(MEAN)
    assert plain.layout.std.flatten().tolist() == pytest.approx(STD)
    assert plain.sha256 != clip.sha256
    assert torch.equal(F.normalize(plain.name_vectors(["red"])), plain.name_vectors(["red"]))


def test_the_fingerprint_covers_the_files_that_are_read(clip: Clip, folder: Path, changed: Path) -> None:
    assert load_clip(changed).sha256 == clip.sha256 != fingerprint(folder)
    (changed / "README.md").write_text("not read")
    assert load_clip(changed).sha256 == clip.sha256
    change_json(changed / "preprocessor_config.json", image_mean=[0.5, 0.4, 0.2])
    assert load_clip(changed).sha256 != clip.sha256


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        r"looked for config\.json of a CLIPModel or SiglipModel, or open_clip_config\.json; the folder holds",
    ),
    "another model": (lambda f: change_json(f / "config.json", model_type="bert"), "is a bert; looked for a clip"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"looked for model\.safetensors .*; found .*vocab\.json",
    ),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "Only safetensors are loaded: pickled .bin and .ckpt files can run code",
    ),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100),
        r"config\.json: describes \d+ weights, but the files of weights have 100 bytes",
    ),
    "no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 10**6), "its files do not load"),
    "a weight": (lambda f: drop_weight(f, "logit_scale"), "its files lack weights: logit_scale"),
    "no words": (lambda f: (f / "merges.txt").unlink(), r"looked for vocab\.json and merges\.txt"),
    "bad words": (lambda f: (f / "vocab.json").write_text("{"), "tokenizer of .*: its files do not load"),
    "more words": (
        lambda f: change_json(f / "vocab.json", more=10**4, still=10**4 + 1),
        r"its tokenizer has \d+ tokens, but its text encoder knows",
    ),
    "a colour": (
        lambda f: change_json(f / "preprocessor_config.json", image_mean=[0.5, 0.5]),
        r"image_mean is \[0\.5, 0\.5\]; expected a number for each of three colours",
    ),
    "no colour": (lambda f: change_json(f / "preprocessor_config.json", image_std=[0, 1, 1]), "image_std above 0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_clip_is_refused(changed: Path, damage: str) -> None:
    inflict, message = DAMAGES[damage]
    inflict(changed)
    with pytest.raises(CheckpointError, match=message):
        load_clip(changed)


def test_the_embedded_model_is_refused_as_a_clip() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"looked for config\.json of a CLIPModel or SiglipModel, or open_clip_config\.json; the folder .*unet",
    ):
        load_clip("tiny")
    with pytest.raises(CheckpointError, match="no such file or folder, and not a hub id"):
        load_clip("/nowhere")
