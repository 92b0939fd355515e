"""Networks whose classes are texts: score maps, texts that depend on the image, other names, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_clip import write_clip
from small_siglip import write_siglip
from torch import nn
from trainings import SEGFORMER, VIT

from diffseg.clip.text_model import TextModel, load_text_model
from pipeline.networks.build import create_network
from pipeline.networks.denseclip import GAMMA, DenseClip
from pipeline.networks.files import load_network, save_network
from pipeline.networks.text_classes import TAU, TextClasses, TextClassifier, similarities
from pipeline.networks.text_networks import about_text
from pipeline.storage import SourceError, Storage

NAMES = ("red", "blue", "green")
KINDS = ("clip", "siglip", "tiny-text")
BACKBONES = {"segformer": SEGFORMER, "vit": VIT}


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = write_clip(folder / "clip")
    return {"clip": str(clip), "siglip": str(write_siglip(folder / "siglip", "siglip")), "tiny-text": "tiny-text"}


def text_of(locations: dict[str, str], kind: str) -> TextModel:
    return load_text_model(locations[kind])


def new_denseclip(text: TextModel, names: tuple[str, ...] = NAMES, *, gamma: float = GAMMA) -> DenseClip:
    torch.manual_seed(0)
    network = DenseClip(text, names, width=8)
    with torch.no_grad():
        network.context.gamma.fill_(gamma)
    return network.eval()


def pictures(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def with_score_map(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores, score_map = network(images, with_score_map=True)
    return scores, score_map


def test_the_score_map_is_the_cosine_of_each_position_with_each_class() -> None:
    generator = np.random.default_rng(0)
    vectors, classes = generator.normal(size=(2, 5, 3, 4)), generator.normal(size=(2, 6, 5))
    expected = np.zeros((2, 6, 3, 4))
    for image, k, y, x in np.ndindex(expected.shape):
        a, b = vectors[image, :, y, x], classes[image, k]
        expected[image, k, y, x] = sum(a * b) / (sum(a * a) * sum(b * b)) ** 0.5
    unit = F.normalize(torch.from_numpy(classes), dim=2)
    found = similarities(torch.from_numpy(vectors).float(), unit.float())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    of_all = similarities(torch.from_numpy(vectors[:1]).float(), unit[0].float())
    np.testing.assert_allclose(of_all.numpy(), expected[:1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_the_score_map_is_that_of_the_plain_texts(kind: str, locations: dict[str, str]) -> None:
    network = new_denseclip(text_of(locations, kind), gamma=0)
    images = pictures()
    with torch.no_grad():
        dense = network.clip(images) if network.clip else network.dense(network.pixels.encode(images)[-1])
        plain = similarities(dense, network.classes()) / TAU
        torch.testing.assert_close(with_score_map(network, images)[1], plain, atol=1e-4, rtol=1e-5)
        network.context.gamma.fill_(0.5)
        assert not torch.allclose(with_score_map(network, images)[1], plain, atol=0.1), "the image changes the texts"


def test_the_dense_features_are_those_of_the_given_clip(locations: dict[str, str]) -> None:
    text = text_of(locations, "clip")
    assert text.clip is not None
    expected, images = text.clip.dense_features(pictures(side=64)), new_denseclip(text).clip
    assert images is not None
    with torch.no_grad():
        torch.testing.assert_close(F.normalize(images(pictures(side=64)), dim=1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_names_changes_nothing_but_the_order_of_scores(kind: str, locations: dict[str, str]) -> None:
    text = text_of(locations, kind)
    first = new_denseclip(text, gamma=0.3)
    other = new_denseclip(text, ("green", "red", "blue"), gamma=0.3)
    with torch.no_grad():
        for a, b in zip(with_score_map(first, pictures()), with_score_map(other, pictures()), strict=True):
            torch.testing.assert_close(a[:, [0, 3, 1, 2]], b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_that_are_trained_have_a_gradient_and_the_text_encoder_has_none(
    kind: str, locations: dict[str, str]
) -> None:
    """Distributed training waits for the gradient of each weight."""
    text = text_of(locations, kind)
    network = new_denseclip(text).train()
    scores, score_map = with_score_map(network, pictures())
    (scores.square().mean() + score_map.square().mean()).backward()
    assert [n for n, weight in network.named_parameters() if weight.requires_grad and weight.grad is None] == []
    own = {id(weight) for weight in network.parameters()}
    assert all(weight.grad is None for weight in text.model.parameters() if id(weight) not in own)
    assert not any("text" in name.split(".") or "text_model" in name for name in network.state_dict())


def test_the_loss_of_the_score_map_alone_learns_planted_classes(locations: dict[str, str]) -> None:
    """The halves of images have two of three colours. The loss gives the decoder no gradient."""
    torch.manual_seed(0)
    network = DenseClip(text_of(locations, "tiny-text"), NAMES, width=8).train()
    optimiser = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], 3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        halves = torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(count)])
        classes = halves[:, None, :].expand(-1, 2, -1)  # as the score map, 2 x 2
        colours = F.one_hot(classes, 3).permute(0, 3, 1, 2).float() * 1.6 - 0.8
        return F.interpolate(colours, (32, 32)) + 0.1 * torch.randn(count, 3, 32, 32, generator=generator), classes + 1

    def accuracy() -> float:
        images, classes = batch(16)
        with torch.no_grad():
            return (with_score_map(network, images)[1].argmax(dim=1) == classes).float().mean().item()

    before = accuracy()
    for _ in range(15):
        images, classes = batch(6)
        optimiser.zero_grad()
        F.cross_entropy(with_score_map(network, images)[1], classes).backward()
        optimiser.step()
    assert network.fuse.weight.grad is None
    assert before < 0.5
    assert accuracy() > 0.95


def save(folder: Path, network: nn.Module, about: dict[str, Any], dimensions: int) -> Storage:
    model = Storage(url=str(folder))
    shared = {"target": "classes", "dimensions": dimensions, "size": 32, "class_names": ("background", *NAMES)}
    save_network(model, network, about | shared)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_denseclip_predicts_the_same_and_takes_other_names(
    kind: str, locations: dict[str, str], tmp_path: Path
) -> None:
    text = text_of(locations, kind)
    network = new_denseclip(text, gamma=0.3)
    about = about_text(locations[kind], text) | {"network": "denseclip", "width": 8}
    model = save(tmp_path / "model", network, about, network.classes.dimensions)
    loaded, config = load_network(model)
    assert config["class_names"] == ["background", *NAMES]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pictures()), network(pictures()), atol=0, rtol=0)
    other, config = load_network(model, ("cat", "red"))
    assert config["class_names"] == ["background", "cat", "red"]
    with torch.inference_mode():
        found = other(pictures())
        assert found.shape[:2] == (2, 3)
        plain = similarities(network.pixels(pictures()), network.classes())[:, 1]
        assert plain.shape == found[:, 2].shape


@pytest.mark.parametrize(
    ("inner", "kind"), [("unet", "clip"), ("unet", "tiny-text"), ("segformer", "clip"), ("vit", "clip")]
)
def test_a_saved_fixed_classifier_predicts_the_same_and_takes_other_names(
    inner: str, kind: str, locations: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    text = text_of(locations, kind)
    classes = TextClasses(text, NAMES)
    (tmp_path / "config.json").write_text(json.dumps(BACKBONES.get(inner)))
    backbone = str(tmp_path / "config.json") if inner in BACKBONES else None
    vectors, about = create_network(inner, dimensions=classes.dimensions, width=8, backbone=backbone)
    network = TextClassifier(vectors, classes).eval()
    model = save(tmp_path / "model", network, about | about_text(locations[kind], text), classes.dimensions)
    loaded, _ = load_network(model)
    other, _ = load_network(model, ("cat", *reversed(NAMES)))
    with torch.inference_mode():
        scores = network(pictures())
        assert torch.equal(loaded(pictures()), scores)
        torch.testing.assert_close(other(pictures())[:, [0, 4, 3, 2]], scores, msg="names do not change each other")


def test_only_the_background_of_a_fixed_classifier_is_trained(locations: dict[str, str]) -> None:
    text = text_of(locations, "clip")
    assert text.clip is not None
    classes = TextClasses(text, NAMES).train()
    assert {name for name, _ in classes.named_parameters()} == {"background"}
    torch.testing.assert_close(classes()[1:], text.clip.name_vectors(NAMES))
    torch.testing.assert_close(classes().norm(dim=1), torch.ones(4))


def test_other_names_and_another_text_encoder_are_refused(locations: dict[str, str], tmp_path: Path) -> None:
    network, about = create_network("unet", dimensions=4, width=8)
    fixed = save(tmp_path / "fixed", network, about, 4)
    load_network(fixed, NAMES)
    with pytest.raises(ValueError, match="names its segments by the classes that it was trained on"):
        load_network(fixed, ("cat",))
    text = text_of(locations, "tiny-text")
    classes = TextClasses(text, NAMES)
    vectors, about = create_network("unet", dimensions=classes.dimensions, width=8)
    named = about_text("tiny-text", text)
    other = save(
        tmp_path / "other", TextClassifier(vectors, classes), about | named | {"text_sha256": "0"}, classes.dimensions
    )
    with pytest.raises(SourceError, match="has other files than in the training of the network"):
        load_network(other)
    large = save(tmp_path / "large", TextClassifier(vectors, classes), about | named | {"width": 512}, 64)
    with pytest.raises(SourceError, match=r"is of a network with [\d,]+ numbers, and the weights are"):
        load_network(large)
