"""How a CLIP is read: windows, templates, several words for a name, and another model's attention in its last layer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_clip import NAMES, PATCH, SIDE, write_clip

from diffseg.clip.clip import Clip, Guide, load_clip
from diffseg.clip.templates import IMAGENET, SHORT
from diffseg.component_settings import ClipSettings

GRID = SIDE // PATCH


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return load_clip(write_clip(tmp_path_factory.mktemp("clip") / "random", layers=2))


def pictures(side: int = SIDE, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("window", "stride", "step"), [(32, 16, 16), (32, 0, 16), (24, 20, 20)])
def test_overlapping_windows_average_the_features_of_each_window(
    clip: Clip, window: int, stride: int, step: int
) -> None:
    """The last window ends at the border of the image, and every position is in at least one window."""
    pixels = pictures(80)
    prepared, positions = clip.preprocess(pixels), 80 // PATCH
    total, count = torch.zeros(1, 32, positions, positions), torch.zeros(positions, positions)
    corners = sorted({*range(0, 80 - window, step), 80 - window})
    for y in corners:
        for x in corners:
            vectors = F.normalize(clip.layout.dense(prepared[:, :, y : y + window, x : x + window]), dim=-1)
            square = vectors.detach().transpose(1, 2).unflatten(2, (window // PATCH, window // PATCH))
            rows, columns = (slice(start // PATCH, (start + window) // PATCH) for start in (y, x))
            total[:, :, rows, columns] += square
            count[rows, columns] += 1
    assert (count > 0).all()
    assert (count > 1).any()
    read = clip.dense_features(pixels, ClipSettings(clip_window=window, clip_stride=stride))
    torch.testing.assert_close(read, total / count)


def test_a_window_as_large_as_the_image_reads_it_at_once(clip: Clip) -> None:
    whole = clip.dense_features(pictures(48))
    assert torch.equal(clip.dense_features(pictures(48), ClipSettings(clip_window=48, clip_stride=8)), whole)
    assert torch.equal(clip.dense_features(pictures(48), ClipSettings(clip_window=500)), whole)
    windows = clip.dense_features(pictures(48), ClipSettings(clip_window=32))
    assert not torch.allclose(windows, whole, atol=1e-3)


def test_an_image_size_of_training_that_is_no_whole_number_of_patches_is_rounded(clip: Clip) -> None:
    """SigLIP so400m-patch14-384 was trained on 384 pixels, of which it reads 27 · 14."""
    odd = dataclasses.replace(clip, layout=dataclasses.replace(clip.layout, image_size=SIDE + 1))
    assert odd.preprocess(pictures(PATCH)).shape == (1, 3, SIDE, SIDE)
    assert odd.dense_features(pictures(PATCH)).shape[2:] == (GRID, GRID)


def test_the_imagenet_templates_are_the_80_texts_of_clips_authors(clip: Clip) -> None:
    assert len(IMAGENET) == len(set(IMAGENET)) == 80
    assert {text.count("{}") for text in (*IMAGENET, *SHORT)} == {1}
    assert {"itap of my {}.", "a origami {}.", "a jpeg corrupted photo of the {}."} < set(IMAGENET)
    vectors = F.normalize(clip.layout.embed_texts([text.format("red") for text in IMAGENET]), dim=-1)
    mean = F.normalize(vectors.detach().mean(dim=0), dim=0)
    torch.testing.assert_close(clip.name_vectors(["red"], "imagenet")[0], mean)
    assert not torch.allclose(clip.name_vectors(["red"])[0], mean)


def test_the_most_probable_word_for_a_name_counts(clip: Clip) -> None:
    """All words compete in one softmax, and a word that is a distractor too is no rival of its own name."""
    several = dataclasses.replace(clip, words={"red": ("square", "sky")})
    distractors = ("sky", "wall")
    probabilities = several.probabilities(pictures(), [["red", "blue"]], distractors)
    each = clip.probabilities(pictures(), [["red", "square", "sky", "blue"]], distractors)
    assert torch.equal(probabilities[:, 0], each[:, :3].amax(dim=1))
    assert torch.equal(probabilities[:, 1], each[:, 3])
    assert torch.equal(several.probabilities(pictures(), [["blue"]]), clip.probabilities(pictures(), [["blue"]]))


def test_a_guide_mixes_the_values_of_the_last_layer(clip: Clip) -> None:
    """The weights of each position go to all heads alike; the residual and the MLP are left out (ProxyCLIP)."""
    positions = GRID * GRID
    attention = torch.rand(2, positions, positions).softmax(dim=-1)
    guided = clip.dense_features(pictures(count=2), guide=Guide(attention, (GRID, GRID)))
    vision = clip.layout.model.vision_model
    last = vision.encoder.layers[-1]
    with torch.no_grad():
        states = vision(clip.preprocess(pictures(count=2)), output_hidden_states=True).hidden_states[-2]
        values = last.self_attn.v_proj(last.layer_norm1(states))[:, 1:]
        mixed = torch.stack([(attention[:, i, :, None] * values).sum(dim=1) for i in range(positions)], dim=1)
        vectors = clip.layout.model.visual_projection(vision.post_layernorm(last.self_attn.out_proj(mixed)))
    expected = F.normalize(vectors, dim=-1).transpose(1, 2).unflatten(2, (GRID, GRID))
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5)


def test_guided_features_are_on_the_guides_grid_and_see_the_whole_image(clip: Clip) -> None:
    """Values are resized as by bilinear interpolation, after the windows were put together."""
    grid, settings = (12, 10), ClipSettings(clip_window=32)
    features = clip.dense_features(pictures(64), settings, Guide(torch.eye(120)[None], grid))
    values = clip._by_windows(clip.layout.values, clip.preprocess(pictures(64)), settings)
    resized = F.interpolate(values, grid, mode="bilinear").flatten(2).transpose(1, 2)
    expected = F.normalize(clip.layout.project(resized), dim=-1).transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(features, expected.detach(), rtol=0, atol=1e-5)
    uniform = clip.dense_features(pictures(64), settings, Guide(torch.full((1, 120, 120), 1 / 120), grid))
    torch.testing.assert_close(uniform, uniform[:, :, :1, :1].expand_as(uniform), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_window": 10, "clip_stride": 11}, "a stride of at most a window"),
        ({"clip_window": -1}, "expected pixels, 0 or more"),
        ({"clip_guide": "sam"}, "clip_guide='sam': expected none, attention, features"),
        ({"clip_templates": "long"}, "clip_templates='long': expected short, imagenet"),
        ({"clip_guide_scale": float("nan")}, "expected 0 to 100"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSettings(**settings)  # type: ignore[arg-type]


def test_names_of_an_image_follow_their_words_whatever_their_order(clip: Clip) -> None:
    several = dataclasses.replace(clip, words={"red": ("circle",), "blue": ("square", "wall")})
    probabilities = several.probabilities(pictures(), [NAMES])
    reordered = several.probabilities(pictures(), [NAMES[::-1]])
    torch.testing.assert_close(reordered, probabilities.flip(1), rtol=0, atol=1e-6)
