"""Variants of an image: the noise, the layer, sums over variants against their definition, and whole segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from planted import voronoi
from planted_variants import correlations, planted_variants, units_of
from small_models import small_unet

from diffseg import Segmenter
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.tiny.recipe.export import CHECKPOINT
from diffseg.variants import record
from diffseg.variants.record import add_noise, record_variants, response_layer

BLOCK = "transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.kron(np.random.default_rng(0).integers(0, 255, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained("tiny", resolution=64, variants=3, tau=0.1, quality=True)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("sd1", f"up_blocks.3.attentions.0.{BLOCK}"),
        ("sd2", f"up_blocks.3.attentions.0.{BLOCK}"),
        ("sdxl", f"up_blocks.1.attentions.0.{BLOCK}"),
    ],
)
def test_the_layer_is_the_first_one_of_the_finest_resolution_on_the_way_up(layout: str, name: str) -> None:
    assert response_layer(small_unet(layout)).name == name


def test_a_unet_without_self_attention_on_the_way_up_is_refused() -> None:
    with pytest.raises(ValueError, match="the up blocks of this UNet have no self-attention"):
        response_layer(small_unet("sd1", up_block_types=("UpBlock2D",) * 4))


def test_noise_is_added_as_the_scheduler_of_the_checkpoint_adds_it() -> None:
    scheduler = DDIMScheduler.from_pretrained(CHECKPOINT, subfolder="scheduler")
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(4, 8, 8, generator=generator)
    for timestep in (0, 50, 999):
        expected = scheduler.add_noise(latents, noise.expand(2, -1, -1, -1), torch.tensor([timestep, timestep]))
        torch.testing.assert_close(add_noise(latents, noise, timestep, None), expected, rtol=1e-4, atol=1e-5)


def test_noise_of_an_edm_network_has_the_same_ratio_to_its_signal() -> None:
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, edm = (add_noise(torch.zeros(1, 4, 8, 8), noise, 300, sigma) for sigma in (None, 0.5))
    kept = add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1), 300, None)
    torch.testing.assert_close(edm / 0.5, plain / kept)


def test_products_of_unit_vectors_are_the_correlations_of_a_float64_brute_force() -> None:
    colours = planted_variants(voronoi(8, 3, 0), 7, 1, seed=0, texture=100)
    units = units_of(colours)
    assert units.shape == (64, 21)
    np.testing.assert_allclose((units @ units.mT).numpy(), correlations(colours), atol=2e-5)


def test_long_vectors_are_projected_and_keep_their_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = planted_variants(voronoi(8, 3, 0), 40, 1, seed=0)
    monkeypatch.setattr(record, "PROJECTED", 64)
    units = units_of(colours)
    assert units.shape == (64, 64)
    error = (units @ units.mT).numpy() - correlations(colours)
    assert np.abs(np.diag(error)).max() < 1e-5
    assert error.std() < 1 / 64**0.5


def test_the_response_is_that_of_passes_with_the_noise_of_each_seed(checkpoints: dict[str, Path]) -> None:
    backbone = Backbone(load_checkpoint(checkpoints["sd1"]))
    pixels = torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    checkpoint, inputs = backbone.checkpoint, list[torch.Tensor]()
    layer = response_layer(checkpoint.unet).module
    handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    torch.manual_seed(7)  # global random state has no influence
    response = record_variants(backbone, pixels, variants=2, timestep=400)
    handle.remove()
    assert len(layer._forward_hooks) == 0
    assert response.grid == (16, 8)
    assert response.finite.tolist() == [True, True]
    with torch.inference_mode():
        features = torch.stack([layer(given) for given in inputs])  # [V, B, P, D]
    vectors = (features - features.mean(dim=0)).permute(1, 2, 0, 3).flatten(2).double()
    expected = torch.nn.functional.cosine_similarity(vectors[:, :, None], vectors[:, None], dim=3)
    found = response.units.double() @ response.units.double().mT
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    torch.manual_seed(8)
    assert torch.equal(record_variants(backbone, pixels, variants=2, timestep=400).units, response.units)


def test_an_image_that_is_not_finite_has_no_response(checkpoints: dict[str, Path]) -> None:
    backbone = Backbone(load_checkpoint(checkpoints["sd1"]))
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[1] = torch.nan
    response = record_variants(backbone, pixels, variants=2, timestep=50)
    assert response.finite.tolist() == [True, False]
    assert not response.units[1].any()


@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
def test_the_score_of_quality_leaves_labels_unchanged(fit: str, segmenter: Segmenter, image: np.ndarray) -> None:
    settings = segmenter.settings.with_values(fit=fit)
    plain, scored = (Segmenter(segmenter.backbone, settings, quality=quality)(image) for quality in (False, True))
    assert np.array_equal(scored.labels, plain.labels)
    assert scored.segments == plain.segments
    assert (plain.within_rho, plain.between_rho) == (None, None)
    assert len(scored.segments) > 1
    assert scored.between_rho is not None
    assert scored.within_rho is not None
    assert -1 <= scored.between_rho < scored.within_rho <= 1


@pytest.mark.parametrize("settings", [{}, {"method": "covariance"}, {"method": "covariance", "covariance_segments": 3}])
def test_results_do_not_depend_on_the_batch(settings: dict[str, Any], segmenter: Segmenter, image: np.ndarray) -> None:
    images = [image, image[::-1].copy()]
    resolved = segmenter.settings.with_values(**{**settings, "method": ("covariance",) if settings else None})
    together = Segmenter(segmenter.backbone, resolved, batch_size=3, quality=True)([*images])
    for one, expected in zip(images, together, strict=True):
        alone = Segmenter(segmenter.backbone, resolved, quality=True)(one)
        assert np.array_equal(alone.labels, expected.labels)
        assert alone.within_rho == pytest.approx(expected.within_rho, abs=1e-5)
        assert alone.between_rho == pytest.approx(expected.between_rho, abs=1e-5)


def test_as_many_segments_as_diffseg_finds(segmenter: Segmenter, image: np.ndarray) -> None:
    merged = Segmenter(segmenter.backbone, segmenter.settings.with_values(method=("diffseg",)))(image)
    settings = segmenter.settings.with_values(method=("covariance",), covariance_segments="diffseg")
    assert len(Segmenter(segmenter.backbone, settings)(image).segments) == len(merged.segments) > 1


@pytest.mark.parametrize(("quality", "message"), [(True, "leave out quality"), (False, "use another stage")])
def test_compiled_models_are_refused(quality: bool, message: str, segmenter: Segmenter) -> None:
    compiled = Backbone(segmenter.backbone.checkpoint)
    compiled.compiled = True
    settings = segmenter.settings if quality else segmenter.settings.with_values(method=("covariance",))
    with pytest.raises(ValueError, match=message):
        Segmenter(compiled, settings, quality=quality)


def test_values_out_of_range_are_refused(segmenter: Segmenter) -> None:
    for name, value in (
        *(("variants", 1), ("variant_timestep", 1000), ("covariance_above", 1.1)),
        *(("covariance_segments", 0), ("covariance_segments", "many")),
    ):
        with pytest.raises(ValueError, match=name):
            segmenter.settings.with_values(**{name: value})
