"""Learned affinity: planted heads and features, losses beside loops over pairs, and what a pass of a model reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import permuted_columns, planted, voronoi
from safetensors.torch import save
from small_models import small_unet, unet_inputs

from diffseg.affinity.affinity import as_attention
from diffseg.affinity.features import (
    FLOOR,
    FeatureAffinity,
    FeatureReader,
    embed,
    fit_features,
    neighbour_affinity,
    neighbour_loss,
    pair_affinities,
)
from diffseg.affinity.heads import (
    HeadAffinity,
    HeadReader,
    choose_pairs,
    fit_heads,
    half_square,
    pair_attention,
    pair_loss,
)
from diffseg.affinity.state import (
    UNKNOWN,
    AffinityError,
    AffinityState,
    area_under_curve,
    hook_self_attention,
    labels_on_grid,
    read_state,
)
from diffseg.attention.recorder import record_self_attention
from diffseg.method.random_walk import stencil_flow

SIDE, HEADS, TELLING = 16, 40, (4, 17, 30)


def stack_of(mask: np.ndarray, seed: int, *, shuffled: bool = False) -> torch.Tensor:
    """float32 [40, P, P]: three heads look at their own region, the others anywhere."""
    generator, heads = np.random.default_rng(seed), []
    for head in range(HEADS):
        maps = planted(mask, leak=0.3, noise=1.0, seed=seed * HEADS + head)
        if head not in TELLING or shuffled:
            maps = permuted_columns(maps, int(generator.integers(2**31)))
        heads.append(maps)
    return torch.from_numpy(np.stack(heads)).float()


def pairs_of_images(seeds: range, *, shuffled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [N, 40] and bool [N] of the pairs of images."""
    channels, alike = [], []
    for seed in seeds:
        mask = voronoi(SIDE, 4, seed)
        first, second, same = choose_pairs(mask, seed)
        channels.append(
            torch.stack([pair_attention(h, first, second) for h in stack_of(mask, seed, shuffled=shuffled)], 1)
        )
        alike.append(torch.from_numpy(same))
    return torch.cat(channels), torch.cat(alike)


def scored(found: dict[str, torch.Tensor], channels: torch.Tensor, alike: torch.Tensor) -> float:
    return area_under_curve((channels @ found["weight"] + found["bias"]).numpy(), alike.numpy())


def test_the_heads_that_tell_are_found_and_tell_on_other_images() -> None:
    found = fit_heads(*pairs_of_images(range(4)))
    positive = found["weight"].clamp_min(0)
    assert positive[list(TELLING)].sum() >= 0.9 * positive.sum()
    assert scored(found, *pairs_of_images(range(100, 103))) > 0.95


def test_shuffled_heads_tell_nothing() -> None:
    found = fit_heads(*pairs_of_images(range(4), shuffled=True))
    assert abs(scored(found, *pairs_of_images(range(100, 102), shuffled=True)) - 0.5) < 0.05


def test_fitting_again_gives_the_same() -> None:
    channels, alike = pairs_of_images(range(2))
    once, twice = fit_heads(channels, alike), fit_heads(channels, alike)
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_pairs_are_near_known_and_of_both_sorts() -> None:
    labels = voronoi(SIDE, 3, 1)
    labels[3:6] = UNKNOWN
    first, second, alike = choose_pairs(labels, 0)
    flat = labels.ravel()
    assert (flat[first] >= 0).all()
    assert (flat[second] >= 0).all()
    assert np.array_equal(flat[first] == flat[second], alike)
    assert alike.mean() == 0.5
    apart = np.abs(np.stack(np.divmod(first, SIDE)) - np.stack(np.divmod(second, SIDE)))
    assert apart.max() == 8
    assert all(np.array_equal(a, b) for a, b in zip(choose_pairs(labels, 0), (first, second, alike), strict=True))
    assert len(choose_pairs(np.zeros((SIDE, SIDE), int), 0)[0]) == 0, "one label has no pair that is not alike"
    assert len(half_square(8)) == (17 * 17 - 1) // 2


def test_loss_of_pairs_is_that_of_a_loop() -> None:
    generator = np.random.default_rng(0)
    affinity, alike = generator.random(200), generator.integers(-1, 2, 200)
    near = [1 - w for w, a in zip(affinity, alike, strict=True) if a == 1]
    far = [w for w, a in zip(affinity, alike, strict=True) if a == 0]
    found = pair_loss(torch.from_numpy(affinity), torch.from_numpy(alike))
    assert float(found) == pytest.approx(sum(near) / len(near) / 2 + sum(far) / len(far) / 2, abs=1e-12)


def test_loss_is_zero_where_all_is_right_and_does_not_see_what_is_unknown() -> None:
    alike = torch.tensor([1, 0, 1, UNKNOWN, 0, UNKNOWN])
    assert pair_loss((alike == 1).double(), alike) == 0
    weights = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for place in range(6):
        moved = weights.clone()
        moved[place] += 1e-6
        slope = float(pair_loss(moved, alike) - pair_loss(weights, alike)) / 1e-6
        assert (abs(slope) > 0.1) == (alike[place] != UNKNOWN)


@pytest.mark.parametrize("background", [False, True])
def test_loss_of_neighbours_is_that_of_a_double_loop(background: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    embedded = torch.rand(2, 6, 7, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1 if background else 1, 4, (2, 7, 8), generator=generator)
    sums: dict[str, list[float]] = {"background": [], "label": [], "apart": []}
    places = [(y, x) for y in range(7) for x in range(8)]
    for image in range(2):
        for number, (y, x) in enumerate(places):
            for j, i in places[number + 1 :]:
                one, other = int(labels[image, y, x]), int(labels[image, j, i])
                if (y - j) ** 2 + (x - i) ** 2 >= 25 or min(one, other) < 0:
                    continue
                weight = np.exp(-np.abs((embedded[image, :, y, x] - embedded[image, :, j, i]).numpy()).mean())
                name = "apart" if one != other else "background" if one == 0 else "label"
                sums[name].append(-np.log((1 - weight if one != other else weight) + FLOOR))
    means = {name: np.mean(values) for name, values in sums.items() if values}
    if background:
        expected = means["background"] / 4 + means["label"] / 4 + means["apart"] / 2
    else:
        expected = means["label"] / 2 + means["apart"] / 2
    assert float(neighbour_loss(neighbour_affinity(embedded), labels)) == pytest.approx(expected, abs=1e-12)


def test_unknown_positions_have_no_part_in_the_loss_of_neighbours() -> None:
    embedded = torch.rand(1, 4, 9, 9, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.from_numpy(voronoi(9, 3, 0))[None] + 1
    labels[0, 4, 4] = UNKNOWN
    neighbour_loss(neighbour_affinity(embedded), labels).backward()
    assert embedded.grad is not None
    assert not embedded.grad[0, :, 4, 4].any()
    assert embedded.grad[0, :, 4, 3].any()


def planted_features(seed: int) -> tuple[dict[tuple[int, int], torch.Tensor], torch.Tensor]:
    """Two of 8 channels of the finest grid tell its regions, beneath noise that is larger; a coarser grid is noise."""
    mask = voronoi(SIDE, 3, seed)
    generator = np.random.default_rng(seed)
    fine, coarse = 2 * generator.standard_normal((8, SIDE * SIDE)), generator.standard_normal((4, SIDE * SIDE // 4))
    fine[:2] = np.array([[1.0, -1, 0], [0, 1, -1]])[:, mask.ravel()] + 0.2 * generator.standard_normal((2, SIDE * SIDE))
    maps = {(SIDE, SIDE): fine, (SIDE // 2, SIDE // 2): coarse}
    features = {grid: torch.from_numpy(each).float()[None] for grid, each in maps.items()}
    return features, torch.from_numpy(mask)[None] + 1


def test_features_that_tell_are_found_and_tell_on_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg.affinity.features.STEPS", 40)
    monkeypatch.setattr("diffseg.affinity.features.RATE", 2e-2)

    def score(found: dict[str, torch.Tensor]) -> float:
        weights = {(SIDE, SIDE): found["16x16"], (SIDE // 2, SIDE // 2): found["8x8"]}
        pairs = []
        for seed in range(100, 102):
            features, labels = planted_features(seed)
            pairs.append(pair_affinities(neighbour_affinity(embed(features, weights, found["bias"])), labels))
        return area_under_curve(*(torch.cat(parts).numpy() for parts in zip(*pairs, strict=True)))

    images = [planted_features(seed) for seed in range(8)]
    assert score(fit_features(images)) > 0.95
    shuffled = [
        (features, labels.flatten()[torch.randperm(SIDE * SIDE)].view_as(labels)) for features, labels in images
    ]
    assert score(fit_features(shuffled)) < 0.8


def test_a_curve_counts_pairs_in_order() -> None:
    affinity, alike = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert area_under_curve(affinity, alike) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert np.isnan(area_under_curve(affinity, np.ones(4, bool)))


def test_labels_on_a_grid_are_those_of_most_pixels() -> None:
    labels = np.zeros((40, 60), np.int64)
    labels[:, 33:] = 7
    labels[:10] = -1
    found = labels_on_grid(labels, (4, 6))
    assert (found[0] == UNKNOWN).all()
    assert (found[1:, :3] == 0).all()
    assert (found[1:, 3] == UNKNOWN).all(), "of 10 pixels 3 are another's"
    assert (found[1:, 4:] == 7).all()


@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_heads_of_a_pass_average_to_the_recorded_attention(layout: str) -> None:
    torch.manual_seed(0)
    unet, inputs = small_unet(layout), unet_inputs(layout, batch=2)
    heads: list[torch.Tensor] = []
    with hook_self_attention(unet, HeadReader(64, lambda _, maps: heads.append(maps.clone()))):
        recorded = record_self_attention(unet, inputs.pop("sample"), **inputs)
    maps, layers = recorded.maps[8, 8], recorded.layers[8, 8]
    assert len(heads) % layers == 0
    torch.testing.assert_close(torch.stack(heads).mean(dim=0), maps)
    assert not any(layer._forward_pre_hooks for layer in unet.modules())


def state_of(kind: str, layout: dict[str, int], tensors: dict[str, torch.Tensor]) -> AffinityState:
    return AffinityState(
        kind=kind,  # type: ignore[arg-type]
        model="tiny",
        model_sha256="ab" * 32,
        timestep=300,
        resolution=128,
        layout=layout,
        tensors=tensors,
    )


def test_a_learned_head_affinity_of_a_pass() -> None:
    torch.manual_seed(1)
    unet, heads = small_unet("sd1"), []
    inputs = unet_inputs("sd1", batch=2)
    sample = inputs.pop("sample")
    with hook_self_attention(unet, HeadReader(64, lambda _, maps: heads.append(maps.clone()))):
        record_self_attention(unet, sample, **inputs)
    weight, bias = torch.randn(len(heads)) / 20, torch.tensor([-0.5])
    state = state_of("heads", {"8x8": len(heads)}, {"weight": weight, "bias": bias})
    learned = HeadAffinity(state)
    with hook_self_attention(unet, learned):
        record_self_attention(unet, sample, **inputs)
    stack = torch.stack(heads, dim=-1) * 64 / 2
    expected = torch.sigmoid((stack + stack.transpose(1, 2)) @ weight + bias)
    found = learned.affinity()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, found.transpose(1, 2), rtol=1e-6, atol=0)
    assert found.min() > 0
    assert found.max() < 1
    attention = as_attention(found, (8, 8), (16, 16))
    assert attention.shape == (2, 256, 256)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 256))
    assert torch.equal(attention[:, 0], attention[:, 17]), "queries of a coarse position are repeated"
    other = HeadAffinity(state_of("heads", {"8x8": 20}, {"weight": weight[:20], "bias": bias}))
    with hook_self_attention(unet, other):
        record_self_attention(unet, sample, **inputs)
    with pytest.raises(AffinityError, match="is of 20 heads at 8 x 8 tokens; this pass had 40"):
        other.affinity()


def test_a_learned_feature_affinity_of_a_pass() -> None:
    torch.manual_seed(2)
    unet, reader = small_unet("sd1"), FeatureReader()
    inputs = unet_inputs("sd1")
    sample = inputs.pop("sample")
    with hook_self_attention(unet, reader):
        recorded = record_self_attention(unet, sample, **inputs)
    features = reader.features(list(recorded.maps))
    layout = {f"{rows}x{columns}": maps.shape[1] for (rows, columns), maps in features.items()}
    assert layout == {"16x16": 32, "8x8": 64, "4x4": 64, "2x2": 64}
    tensors = {name: torch.randn(10, size) / 4 for name, size in layout.items()} | {"bias": torch.zeros(10)}
    learned = FeatureAffinity(state_of("features", layout, tensors))
    with hook_self_attention(unet, learned):
        record_self_attention(unet, sample, **inputs)
    found = learned.affinity()
    assert len(found) == 34
    assert all(((each > 0) & (each <= 1)).all() for each in found.values())
    matrix = stencil_flow(found)(torch.eye(256).view(1, 256, 16, 16)).flatten(2)[0]
    torch.testing.assert_close(matrix, matrix.T)
    assert not matrix.diagonal().any()
    assert (matrix > 0).sum(dim=1).amax() == 68
    with pytest.raises(AffinityError, match="channels by resolution"):
        FeatureAffinity(state_of("features", {"16x16": 8}, tensors)).affinity()


def test_a_state_is_read_back_and_refused_where_it_does_not_fit() -> None:
    state = state_of("heads", {"8x8": 2}, {"weight": torch.tensor([1.0, 2]), "bias": torch.zeros(1)})
    data = state.to_bytes()
    assert state.to_bytes() == data
    found = read_state(data, "here")
    assert (found.kind, found.model_sha256, dict(found.layout)) == (state.kind, state.model_sha256, {"8x8": 2})
    assert torch.equal(found.tensors["weight"], state.tensors["weight"])
    found.check_fits(state.model_sha256)
    with pytest.raises(AffinityError, match="learned from tiny"):
        found.check_fits("cd" * 32)
    with pytest.raises(AffinityError, match="one of features is needed"):
        FeatureAffinity(found)
    with pytest.raises(AffinityError, match="here: cannot be read as safetensors"):
        read_state(data[:20], "here")
    with pytest.raises(AffinityError, match="here: is no state of"):
        read_state(save({"weight": torch.zeros(1)}), "here")
