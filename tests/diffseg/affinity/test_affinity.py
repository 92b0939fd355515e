"""Learned affinity in a pass: which methods accept which state, what is recorded, and its use as attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_models import small_unet, unet_inputs

from diffseg import Segmenter
from diffseg.affinity.affinity import Affinity, as_attention, check_state, record_affinity
from diffseg.affinity.features import neighbour_affinity
from diffseg.affinity.state import AffinityError, AffinityState, Kind, PassConditions, layers_by_grid
from diffseg.attention.recorder import AttentionRecorder
from diffseg.model.backbone import Backbone, no_step
from diffseg.model.checkpoint import load_checkpoint
from diffseg.settings import settings_of

HEADS = 40
"""Heads of the small model at 8 x 8 tokens."""


@pytest.fixture
def heads_state(make_state: Callable[..., AffinityState]) -> AffinityState:
    return make_state("heads", {"8x8": HEADS}, {"weight": torch.randn(HEADS) / 20, "bias": torch.tensor([-0.5])})


def test_dense_affinity_becomes_attention_whose_rows_sum_to_1() -> None:
    affinity = torch.rand(2, 64, 64)
    affinity = (affinity + affinity.transpose(1, 2)) / 2
    attention = as_attention(affinity, (8, 8), (16, 16))
    assert attention.shape == (2, 256, 256)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 256))
    assert torch.equal(attention[:, 0], attention[:, 17]), "queries of a coarse position are repeated"


def test_a_pass_inside_the_block_records_the_affinity(heads_state: AffinityState) -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1", batch=3)
    with record_affinity(heads_state, unet) as recorded:
        AttentionRecorder(unet).self_attention(inputs.pop("sample"), **inputs)
    affinity = recorded()
    assert affinity is not None
    assert affinity.dense is not None
    assert affinity.grid == (8, 8)
    assert affinity.dense.shape == (3, 64, 64)
    part = affinity.of_images(1, 2).dense
    assert part is not None
    assert torch.equal(part, affinity.dense[1:2])


def test_without_a_state_there_is_no_affinity() -> None:
    with record_affinity(None, small_unet("sd1")) as recorded:
        assert recorded() is None


def test_local_affinity_of_some_images() -> None:
    local = {(0, 1): torch.rand(3, 4, 3), (1, 0): torch.rand(3, 3, 4)}
    part = Affinity(grid=(4, 4), local=local).of_images(0, 2)
    assert part.dense is None
    assert part.local is not None
    assert all(torch.equal(part.local[offset], maps[:2]) for offset, maps in local.items())


def test_a_state_needs_a_stage_of_its_kind_and_its_own_model(
    heads_state: AffinityState, make_state: Callable[..., AffinityState], conditions: PassConditions
) -> None:
    features = make_state("features", {"8x8": 4}, {})
    check_state(None, None, ("diffseg", "walk"))
    check_state(heads_state, conditions, ("affinity", "diffseg"))
    check_state(features, conditions, ("diffseg", "walk"))
    with pytest.raises(AffinityError, match="needs a file of `diffseg fit heads`"):
        check_state(None, None, ("affinity", "diffseg"))
    with pytest.raises(AffinityError, match="affinity of heads, for stage affinity"):
        check_state(heads_state, conditions, ("diffseg", "walk"))
    with pytest.raises(AffinityError, match="affinity of features, for stage walk"):
        check_state(features, conditions, ("affinity", "diffseg", "walk"))
    with pytest.raises(AffinityError, match="learned from tiny"):
        check_state(heads_state, replace(conditions, model_sha256="cd" * 32), ("affinity", "diffseg"))


def mirrored_dense(affinity: torch.Tensor) -> torch.Tensor:
    """Return float [B, P, P] of a grid of 4 x 5 with every position replaced by the one that mirroring puts there."""
    order = torch.arange(20).view(4, 5).flip(1).flatten()
    return affinity[:, order][:, :, order]


def test_dense_affinity_is_averaged_with_that_of_the_mirrored_image() -> None:
    first, second = torch.rand(2, 20, 20), torch.rand(2, 20, 20)
    affinity = Affinity(grid=(4, 5), dense=first.clone())
    affinity.average_with_mirrored(Affinity(grid=(4, 5), dense=mirrored_dense(second)))
    torch.testing.assert_close(affinity.dense, (first + second) / 2)


def test_local_affinity_is_averaged_with_that_of_the_mirrored_image() -> None:
    """The affinity of mirrored embeddings, mirrored back, is the affinity of the embeddings themselves."""
    first, second = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    local, other = neighbour_affinity(first), neighbour_affinity(second)
    expected = {offset: (maps + other[offset]) / 2 for offset, maps in local.items()}
    affinity = Affinity(grid=(4, 5), local=local)
    affinity.average_with_mirrored(Affinity(grid=(4, 5), local=neighbour_affinity(second.flip(-1))))
    assert affinity.local is not None
    assert {offset for offset in expected if offset[1] < 0}, "the neighbourhood has offsets to both sides"
    for offset, maps in expected.items():
        torch.testing.assert_close(affinity.local[offset], maps)


@pytest.mark.parametrize("kind", ["heads", "features"])
def test_labels_with_flip_do_not_depend_on_the_side_and_crops_are_refused(kind: Kind) -> None:
    """With `flip`, an image and its mirror image get mirrored affinities, which one pass alone does not give."""
    backbone = Backbone(load_checkpoint("tiny"))
    checkpoint, generator = backbone.checkpoint, torch.Generator().manual_seed(0)
    layers, pixels = layers_by_grid(checkpoint.unet, 64), torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    modules = dict(checkpoint.unet.named_modules())
    if kind == "heads":
        layout = {"8x8": sum(modules[name].heads for name in layers["8x8"])}
        tensors = {"weight": torch.randn(layout["8x8"], generator=generator), "bias": torch.zeros(1)}
    else:
        layout = {grid: modules[names[-1]].to_q.in_features for grid, names in layers.items()}
        tensors = {grid: torch.randn(8, size, generator=generator) / 4 for grid, size in layout.items()}
        tensors["bias"] = torch.zeros(8)
    state = AffinityState(
        kind=kind,
        model="tiny",
        model_sha256=checkpoint.sha256,
        timestep=checkpoint.timestep,
        resolution=64,
        layout=layout,
        tensors=tensors,
        layers={grid: layers[grid] for grid in layout},
    )
    method = "affinity,diffseg" if kind == "heads" else "diffseg,walk"

    @torch.inference_mode()
    def asymmetry(flip: bool) -> float:
        """Return how far the affinity of an image is from that of its mirror image, after mirroring that back."""
        settings = settings_of(method=method, flip=flip, resolution=64)
        recorder = Segmenter(backbone, settings, affinity=state).recorder
        one, other = (recorder.run_pass(side, None, no_step).affinity for side in (pixels, pixels.flip(-1)))
        assert one is not None
        assert other is not None
        maps = [one.dense] if one.dense is not None else list((one.local or {}).values())
        before = [each.clone() for each in maps if each is not None]
        one.average_with_mirrored(other)
        return max(float((2 * (a - b)).abs().max()) for a, b in zip(maps, before, strict=True) if a is not None)

    assert asymmetry(flip=True) < 1e-4
    assert asymmetry(flip=False) > 1e-2
    with pytest.raises(ValueError, match="crops and affinity exclude each other"):
        Segmenter(backbone, settings_of(method=method, crops=2, resolution=64), affinity=state)
    with pytest.raises(AffinityError, match=r"this run has timestep .* and 128 x 128 pixels: run with --timestep"):
        Segmenter(backbone, settings_of(method=method, resolution=128), affinity=state)
