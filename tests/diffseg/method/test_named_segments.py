"""Named segments, from images to Segmentations. The weights are random, so meaning is not tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffseg import Segmenter
from diffseg.images.canvas import fit_image
from diffseg.model.layout import CheckpointError
from diffseg.model.text import Prompt, prompt_of_names

NAMES = ("the cat", "sky", "an hat")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    return [np.kron(block, np.ones((20, 16, 1), dtype=np.uint8)) for block in blocks]


def segmenter(checkpoints: dict[str, Path], layout: str = "sd1", **settings: Any) -> Segmenter:
    return Segmenter.from_pretrained(checkpoints[layout], **{"naming": True, "tau": 0.05, **settings})


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("sd1", {}),
        ("sd1", {"method": "cross,par", "flip": True}),
        ("sd1", {"method": "diffseg,par,cross", "vote": "mode", "min_area": 0.01, "crops": 2}),
        ("sdxl", {"method": "ncut,cross", "vote": "mean"}),
    ],
    ids=["default", "classes", "all", "sdxl"],
)
def test_every_segment_gets_one_of_the_names(
    layout: str, settings: dict[str, Any], checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    method = segmenter(checkpoints, layout, batch_size=2, **settings)
    results = method(images, names=NAMES)
    for result in results:
        assert {segment.name for segment in result.segments} <= {*NAMES}
        assert all(0 <= segment.name_score <= 1 for segment in result.segments)
        assert [segment.area for segment in result.segments] == np.bincount(result.labels.ravel()).tolist()
    assigned = {segment.name for result in results for segment in result.segments}
    assert len(assigned) > 1 or layout == "sdxl", "with a single name no mix-up of names would show"
    alone = Segmenter(method.backbone, method.settings, batch_size=2, naming=True)(images[2], names=NAMES)
    assert np.array_equal(alone.labels, results[2].labels)
    assert alone.segments == results[2].segments


def test_segments_below_the_thresholds_are_background_or_have_no_name(
    checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    plain = segmenter(checkpoints)(images[0], names=NAMES)
    middle = float(np.median([segment.name_score for segment in plain.segments]))
    strict = segmenter(checkpoints, background_below=middle / 2, ignore_below=middle)(images[0], names=NAMES)
    for before, after in zip(plain.segments, strict.segments, strict=True):
        below = "background" if before.name_score < middle / 2 else None
        assert after.name == (before.name if before.name_score >= middle else below)
        assert after.name_score == before.name_score
    assert None in {segment.name for segment in strict.segments}


def test_an_image_without_names_is_all_background(checkpoints: dict[str, Path], images: list[np.ndarray]) -> None:
    for method in ("diffseg,cross", "cross"):
        result = segmenter(checkpoints, method=method)(images[0], names=[])
        assert {segment.name for segment in result.segments} == {"background"}
    assert len(result.segments) == 1


def test_images_of_a_batch_may_have_different_names(checkpoints: dict[str, Path], images: list[np.ndarray]) -> None:
    """Long lists need several prompts, which must not shift the names of the other images of the batch."""
    method = segmenter(checkpoints, batch_size=3)
    many = tuple(f"{chr(97 + i % 26)}x{chr(97 + i // 26)}yz" for i in range(40))
    prompts = [prompt_of_names(many), prompt_of_names(NAMES), prompt_of_names(many[:25])]
    inputs = [method.prepare(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    together = method.launch(inputs).results()
    for model_input, result in zip(inputs, together, strict=True):
        (alone,) = method.launch([model_input]).results()
        assert not isinstance(alone, Exception)
        assert not isinstance(result, Exception)
        assert [segment.name for segment in result.segments] == [segment.name for segment in alone.segments]
        assert model_input.prompt is not None
        assert {segment.name for segment in result.segments} <= {*model_input.prompt.names}


@pytest.mark.parametrize("count", [59, 150])
def test_any_number_of_names_beside_the_pass_leaves_the_masks_of_a_run_without_names(
    count: int, checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    plain = segmenter(checkpoints, naming=False)(images[0])
    names = [f"{chr(97 + i % 26)}x{chr(97 + i // 26 % 26)}y{i // 676}" for i in range(count)]
    named = segmenter(checkpoints, prompt="empty")(images[0], names=names)
    assert named.labels.tobytes() == plain.labels.tobytes()
    assert [segment.confidence for segment in named.segments] == [segment.confidence for segment in plain.segments]
    assert {segment.name for segment in named.segments} <= {*names}
    assert len(named.segments) > 1


def test_names_beside_the_pass_do_not_depend_on_the_names_of_other_images(
    checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    method = segmenter(checkpoints, prompt="empty", background_words=("an", "hat"), batch_size=3, flip=True)
    prompts = [prompt_of_names(names) for names in (("the cat", "sky", "hat"), (), ("an hat",))]
    inputs = [method.prepare(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    for model_input, result in zip(inputs, method.launch(inputs).results(), strict=True):
        (alone,) = method.launch([model_input]).results()
        assert not isinstance(alone, Exception)
        assert not isinstance(result, Exception)
        assert np.array_equal(result.labels, alone.labels)
        for segment, other in zip(result.segments, alone.segments, strict=True):
            assert segment.name == other.name
            assert segment.name_score == pytest.approx(other.name_score, abs=1e-5)


def test_a_caption_can_condition_the_pass_while_names_are_recorded_beside_it(
    checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    caption = Prompt(text="a cat, a hat", names=NAMES, spans=((),) * 3)
    method, plain = segmenter(checkpoints, prompt="caption"), segmenter(checkpoints)
    first, second = (m.attention_of([m.prepare(images[0], caption)]) for m in (method, plain))
    assert torch.equal(first.self_attention, second.self_attention) or torch.allclose(
        first.self_attention, second.self_attention, atol=1e-6
    )
    empty = segmenter(checkpoints, prompt="empty")
    assert not torch.allclose(
        empty.attention_of([empty.prepare(images[0], caption)]).self_attention, first.self_attention, atol=1e-6
    )


def test_segments_that_belong_to_a_background_word_are_background(
    checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    for method in ("diffseg,cross", "cross"):
        words = NAMES[1:]
        as_names = segmenter(checkpoints, method=method, prompt="empty")(images[0], names=NAMES)
        as_words = segmenter(checkpoints, method=method, prompt="empty", background_words=words)(
            images[0], names=NAMES[:1]
        )
        background = {segment.id for segment in as_words.segments if segment.name == "background"}
        share = np.isin(as_words.labels, [*background]).mean()
        others = [segment.id for segment in as_names.segments if segment.name in words]
        assert share > 0
        assert share == pytest.approx(np.isin(as_names.labels, others).mean(), abs=0.15)


def test_segments_of_one_name_can_be_merged(checkpoints: dict[str, Path], images: list[np.ndarray]) -> None:
    apart = segmenter(checkpoints)(images[0], names=NAMES)
    merged = segmenter(checkpoints, merge_names=True)(images[0], names=NAMES)
    names = [segment.name for segment in merged.segments]
    assert len(apart.segments) > len(names) == len(set(names))
    name_of = np.array([segment.name for segment in apart.segments])
    assert np.array_equal(np.array(names)[merged.labels], name_of[apart.labels])


def test_maps_of_names_are_means_over_their_tokens(checkpoints: dict[str, Path], images: list[np.ndarray]) -> None:
    backbone = segmenter(checkpoints).backbone
    pixels = fit_image(images[0], 128, "resize").pixels[None]
    caption = Prompt(text="a cat, a hat", names=("cat", "a"), spans=(((2, 5),), ((0, 1), (7, 8))))
    text = backbone.checkpoint.text
    assert text is not None
    cat, articles = text.columns(caption)
    attention, cross = backbone.attention(pixels, 300, [[caption]])
    by_token = Prompt(text=caption.text, names=(*"cat",), spans=(((2, 3),), ((3, 4),), ((4, 5),)))
    _, tokens = backbone.attention(pixels, 300, [[by_token]])
    assert len(cat) == 3
    assert len(articles) == 2
    for grid, maps in cross.maps.items():
        torch.testing.assert_close(maps[0, 0], tokens.maps[grid][0].mean(dim=0))
    _, second = backbone.attention(pixels, 300, [[Prompt(text=caption.text, names=("a",), spans=(((7, 8),),))]])
    _, first = backbone.attention(pixels, 300, [[Prompt(text=caption.text, names=("a",), spans=(((0, 1),),))]])
    for grid, maps in cross.maps.items():
        torch.testing.assert_close(maps[0, 1], (second.maps[grid][0, 0] + first.maps[grid][0, 0]) / 2)
    assert attention.finest == (16, 16)


def test_missing_names_and_missing_text_encoders_are_refused(
    checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    with pytest.raises(ValueError, match="method diffseg,cross names segments: it needs names for each image"):
        segmenter(checkpoints)(images[0])
    with pytest.raises(CheckpointError, match="has no text encoder"):
        segmenter(checkpoints, "textless")
