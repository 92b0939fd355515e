"""Affinity from features: planted features are recovered, and a pass of a model gives affinity of neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from planted import voronoi
from small_models import small_unet, unet_inputs

from diffseg.affinity.features import FeatureAffinity, FeatureReader, embed, fit, fit_features, neighbour_affinity
from diffseg.affinity.pairs import pair_affinities, roc_auc
from diffseg.affinity.state import AffinityError, AffinityState, hook_self_attention
from diffseg.attention.recorder import AttentionRecorder
from diffseg.method.random_walk import stencil_flow

SIDE = 16


def planted_features(seed: int) -> tuple[dict[tuple[int, int], torch.Tensor], torch.Tensor]:
    """Return features and labels of an image.

    Two of 8 channels of the finest grid follow its regions, beneath noise that is larger; a coarser grid is noise.
    """
    mask = voronoi(SIDE, 3, seed)
    generator = np.random.default_rng(seed)
    fine, coarse = 2 * generator.standard_normal((8, SIDE * SIDE)), generator.standard_normal((4, SIDE * SIDE // 4))
    fine[:2] = np.array([[1.0, -1, 0], [0, 1, -1]])[:, mask.ravel()] + 0.2 * generator.standard_normal((2, SIDE * SIDE))
    maps = {(SIDE, SIDE): fine, (SIDE // 2, SIDE // 2): coarse}
    features = {grid: torch.from_numpy(channels).float()[None] for grid, channels in maps.items()}
    return features, torch.from_numpy(mask)[None] + 1


def auc_of(fitted: dict[str, torch.Tensor]) -> float:
    """Return the ROC AUC over two images that were not fitted to."""
    weights = {(SIDE, SIDE): fitted["16x16"], (SIDE // 2, SIDE // 2): fitted["8x8"]}
    pairs = []
    for seed in range(100, 102):
        features, labels = planted_features(seed)
        pairs.append(pair_affinities(neighbour_affinity(embed(features, weights, fitted["bias"])), labels))
    return roc_auc(*(torch.cat(parts).numpy() for parts in zip(*pairs, strict=True)))


def test_informative_features_generalise_to_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg.affinity.features.STEPS", 40)
    monkeypatch.setattr("diffseg.affinity.features.RATE", 2e-2)
    images = [planted_features(seed) for seed in range(8)]
    assert auc_of(fit_features(images)) > 0.95
    shuffled = [
        (features, labels.flatten()[torch.randperm(SIDE * SIDE)].view_as(labels)) for features, labels in images
    ]
    assert auc_of(fit_features(shuffled)) < 0.8


def test_the_order_of_an_images_tensors_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg.affinity.features.STEPS", 3)
    features, labels = planted_features(0)
    observation = {f"{grid[0]}x{grid[1]}": maps[0] for grid, maps in features.items()} | {"labels": labels[0]}
    one, other = fit([observation])[0], fit([dict(reversed(observation.items()))])[0]
    assert one.keys() == other.keys() >= {"16x16", "8x8", "bias"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pass_gives_affinity_of_neighbours_and_other_layers_are_refused(
    make_state: Callable[..., AffinityState],
) -> None:
    torch.manual_seed(2)
    unet, reader = small_unet("sd1"), FeatureReader()
    inputs = unet_inputs("sd1")
    sample = inputs.pop("sample")
    with hook_self_attention(unet, reader):
        recorded = AttentionRecorder(unet).self_attention(sample, **inputs)
    features = reader.features(list(recorded.maps))
    layout = {f"{rows}x{columns}": maps.shape[1] for (rows, columns), maps in features.items()}
    assert layout == {"16x16": 32, "8x8": 64, "4x4": 64, "2x2": 64}
    tensors = {name: torch.randn(10, size) / 4 for name, size in layout.items()} | {"bias": torch.zeros(10)}
    recorder = FeatureAffinity(make_state("features", layout, tensors))
    with hook_self_attention(unet, recorder):
        AttentionRecorder(unet).self_attention(sample, **inputs)
    affinity = recorder.affinity()
    assert len(affinity) == 34
    assert all(((maps > 0) & (maps <= 1)).all() for maps in affinity.values())
    matrix = stencil_flow(affinity)(torch.eye(256).view(1, 256, 16, 16)).flatten(2)[0]
    torch.testing.assert_close(matrix, matrix.T)
    assert not matrix.diagonal().any()
    assert (matrix > 0).sum(dim=1).amax() == 68
    with pytest.raises(AffinityError, match="channels by resolution"):
        FeatureAffinity(make_state("features", {"16x16": 8}, tensors)).affinity()


def test_of_several_passes_the_first_counts() -> None:
    unet, inputs = small_unet("sd1"), unet_inputs("sd1")
    sample = inputs.pop("sample")
    first, both = FeatureReader(), FeatureReader()
    recorder = AttentionRecorder(unet)
    with hook_self_attention(unet, first):
        recorder.self_attention(sample, **inputs)
    with hook_self_attention(unet, both):
        recorder.self_attention(sample, **inputs)
        recorder.self_attention(-sample, **inputs)
    assert first.inputs.keys() == both.inputs.keys()
    assert all(torch.equal(kept, both.inputs[tokens]) for tokens, kept in first.inputs.items())


def test_a_state_of_heads_is_refused(make_state: Callable[..., AffinityState]) -> None:
    with pytest.raises(AffinityError, match="expected an affinity of features"):
        FeatureAffinity(make_state("heads", {"8x8": 2}, {}))
