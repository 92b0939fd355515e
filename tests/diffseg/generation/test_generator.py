"""Requests become images with label maps, whatever their batch; what cannot be generated is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffseg import IGNORE, CheckpointError, NonFiniteError
from diffseg.generation.generator import GeneratedImage, Generator
from diffseg.generation.request import GenerationRequest
from diffseg.generation.settings import GenerationSettings
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.settings import SegmenterSettings, settings_of

Make = Callable[..., Generator]
REQUESTS = [
    GenerationRequest(prompt="a cat on the sand", classes=("cat", "sand"), seed=1),
    GenerationRequest(prompt="an owl", classes=("owl",), seed=2),
    GenerationRequest(prompt="an ant", classes=("ant", "an ant hill", "hill"), seed=3),
]


@pytest.fixture(scope="module")
def make(checkpoints: dict[str, Path]) -> Make:
    """Return a function that makes a generator of images of 64 x 64 pixels with a small checkpoint."""
    load = functools.cache(lambda: Backbone(load_checkpoint(checkpoints["sd1"], text=True, decoder=True)))

    def make_generator(segmenter: SegmenterSettings | None = None, batch_size: int = 2, **settings: Any) -> Generator:
        chosen = GenerationSettings(**{"steps": 2, "guidance": 2.0, "size": 64, **settings})
        return Generator(load(), chosen, segmenter=segmenter, batch_size=batch_size)

    return make_generator


def images_of(generator: Generator, requests: list[GenerationRequest]) -> list[GeneratedImage]:
    images = generator.generate(requests)
    assert all(isinstance(image, GeneratedImage) for image in images)
    return [image for image in images if isinstance(image, GeneratedImage)]


def test_a_request_gives_the_same_image_and_labels_in_any_batch(make: Make) -> None:
    generator = make()
    together, reversed_order = images_of(generator, REQUESTS), images_of(generator, REQUESTS[::-1])[::-1]
    for one, other in zip(together, reversed_order, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.segmentation.labels, other.segmentation.labels)
        assert one.segmentation.segments == other.segmentation.segments
        assert (one.threshold, one.agree_iou) == (other.threshold, other.agree_iou)
    alone = images_of(make(batch_size=1), REQUESTS)
    for one, other in zip(together, alone, strict=True):  # another number of images may round otherwise
        assert np.abs(one.image.astype(int) - other.image).max() <= 1


def test_images_have_a_label_map_of_their_classes(make: Make) -> None:
    for request, generated in zip(REQUESTS, images_of(make(), REQUESTS), strict=True):
        labels, segments = generated.segmentation.labels, generated.segmentation.segments
        assert generated.image.shape == (64, 64, 3)
        assert generated.image.dtype == np.uint8
        assert set(np.unique(labels)) - {IGNORE} == set(range(len(segments)))
        assert {segment.name for segment in segments} <= {*request.classes, "background"}
        assert [segment.area for segment in segments] == [(labels == segment.id).sum() for segment in segments]
        assert tuple(generated.threshold) == tuple(generated.agree_iou) == request.classes
        assert all(0.4 <= threshold <= 0.8 for threshold in generated.threshold.values())
        assert all(0 <= iou <= 1 for iou in generated.agree_iou.values())


def test_pixels_in_the_uncertain_band_are_ignored(make: Make) -> None:
    shares = []
    for uncertain in (0.0, 0.2, 0.9):
        (generated,) = images_of(make(uncertain=uncertain), REQUESTS[:1])
        shares.append((generated.segmentation.labels == IGNORE).mean())
    assert shares[0] == 0
    assert 0 < shares[1] < shares[2]


@pytest.mark.parametrize(
    ("method", "named"),
    [(("diffseg",), False), (("diffseg", "walk", "cross"), True), (("cross",), True), (("ncut", "par", "cross"), True)],
)
def test_the_stages_of_label_work_on_generated_images(make: Make, method: tuple[str, ...], named: bool) -> None:
    segmenter = settings_of(tau=1e-3)
    generated = images_of(make(segmenter, method=method), REQUESTS)
    for request, image in zip(REQUESTS, generated, strict=True):
        assert method[0] == "cross" or not (image.segmentation.labels == IGNORE).any()
        assert tuple(image.threshold) == (request.classes if named else ())
        assert all((segment.name is None) != named for segment in image.segmentation.segments)


def test_an_sdxl_in_half_precision_generates(checkpoints: dict[str, Path]) -> None:
    settings = GenerationSettings(steps=2, size=64, scheduler="dpm++")
    generator = Generator.from_pretrained(checkpoints["sdxl"], settings, dtype="bfloat16")
    (generated,) = images_of(generator, REQUESTS[:1])
    assert generated.segmentation.labels.shape == (64, 64)


def test_the_classes_do_not_change_the_image(make: Make) -> None:
    request = GenerationRequest(prompt="a cat on the sand", classes=("rocket",), seed=1)
    first, second = images_of(make(), [REQUESTS[0], request])
    assert np.array_equal(first.image, second.image)


def test_every_token_of_a_class_counts_and_none_of_another_class(make: Make) -> None:
    backbone = make().backbone
    text = backbone.checkpoint.text
    assert text is not None
    classes = ("hill", "an ant hill", "an an", "an")  # several tokens, a word of another class, a repeated word
    context = backbone.name_context([classes])
    (weights,) = context.weights
    tokens = [len(text.parts[0][0](name, add_special_tokens=False)["input_ids"]) for name in classes]
    assert tokens[2] == 2 * tokens[3]
    assert min(tokens[:2]) > 1
    assert [int((of_class > 0).sum()) for of_class in weights] == tokens
    assert int((weights > 0).sum(dim=0).max()) == 1
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert context.tokens == 2 + sum(tokens)  # those of the empty prompt, and of the classes


def test_an_image_on_which_the_model_overflows_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    sample = generator.sampler.sample

    def overflow(*arguments: Any) -> Any:
        found = sample(*arguments)
        found.latents[1] = torch.inf
        return found

    monkeypatch.setattr(generator.sampler, "sample", overflow)
    first, second = generator.generate(REQUESTS[:2])
    assert isinstance(first, GeneratedImage)
    assert isinstance(second, NonFiniteError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": ("cross", "clip")}, "only one stage can name"),
        ({"method": ("clip",)}, "stage clip reads more than attention"),
        ({"segmenter": settings_of(flip=True)}, "flip: is not recorded while images are generated"),
        ({"size": 60}, "size=60: expected a multiple of 64"),
        ({"guidance": 0.5}, "guidance=0.5: expected 1 to 100"),
        ({"steps": 0}, "steps=0: expected 1 to 1000"),
        ({"scheduler": "heun"}, "scheduler='heun': expected one of checkpoint, ddim"),
        ({"record_from": 500, "record_to": 400}, "expected a range within 0 to 999"),
        ({"batch_size": 0}, "batch_size=0: expected 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "expected at least one name"),
        ({"classes": ("cat", " ")}, "no empty ones"),
        ({"classes": ("cat", "Cat")}, "'cat' is repeated"),
        ({"seed": -1}, "seed=-1: expected 0 to"),
    ],
)
def test_requests_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationRequest(**{"prompt": "", "classes": ("cat",), "seed": 0, **change})


def test_checkpoints_that_cannot_generate_are_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="has no text encoder"):
        Generator.from_pretrained(checkpoints["textless"])
    with pytest.raises(ValueError, match="loaded with text encoders and decoder"):
        Generator(Backbone(load_checkpoint(checkpoints["sd1"], text=True)))


def test_the_noise_schedule_counts_in_the_digest_of_a_model_that_generates(copy: Callable[[str], Path]) -> None:
    folder = copy("sd1")
    digests = set()
    for content in ('{"_class_name": "DDIMScheduler"}', '{"_class_name": "PNDMScheduler"}'):
        (folder / "scheduler" / "scheduler_config.json").write_text(content)
        digests |= {load_checkpoint(folder).sha256, load_checkpoint(folder, decoder=True).sha256}
    assert len(digests) == 3  # labelling does not depend on it
