"""Settings are validated on construction, and presets do what their sources do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from diffseg.settings import COMPONENTS, PRESETS, SegmenterSettings, settings_of, thresholds


def test_the_presets_differ_where_paper_and_release_differ() -> None:
    paper, google = (PRESETS[name].flat() for name in ("paper", "google"))
    assert {name: (paper[name], google[name]) for name in paper if paper[name] != google[name]} == {
        "antialias": (True, False),
        "weights": ("paper", "google"),
        "anchor_layout": ("even", "google"),
        "consume": ("paper", "google"),
        "vote": ("share", "mean"),
    }
    assert paper["tau"] == google["tau"] == (1.1, 1.1, 1.1)
    assert paper["timestep"] == google["timestep"] == 300
    assert paper["fit"] == google["fit"] == "crop"
    assert paper["anchors_per_side"] == 16


def test_the_default_labels_the_whole_image_and_leaves_the_rest_to_the_checkpoint() -> None:
    default = settings_of()
    assert default == PRESETS["default"] == SegmenterSettings()
    values = default.flat()
    assert values["fit"] == "resize"
    assert (values["tau"], values["timestep"], values["resolution"]) == (None, None, None)


def test_overrides_do_not_change_the_preset() -> None:
    changed = settings_of("google", kmeans=True, tau=0.9)
    assert changed.proposals.kmeans
    assert changed.merging.tau == (0.9, 0.9, 0.9)
    assert changed.attention.weights == "google"
    assert PRESETS["google"].merging.tau == (1.1, 1.1, 1.1)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(1, (1.0, 1.0, 1.0)), (0.5, (0.5, 0.5, 0.5)), ([0.9, 1.1], (0.9, 1.1)), ((0.7,), (0.7,)), (None, None)],
)
def test_tau_is_one_number_or_one_per_round(tau: Any, expected: tuple[float, ...] | None) -> None:
    assert settings_of("google", tau=tau).merging.tau == expected
    if tau is not None:
        assert thresholds(tau) == expected


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("fit", ["stretch", None]),
        ("anchor_layout", ["odd"]),
        ("consume", ["all"]),
        ("assign", ["farthest"]),
        ("method", [("crf",), ("par",), (), ("diffseg", "ncut"), ("diffseg", "par", "par")]),
        ("vote", ["most"]),
        ("background_below", [-0.1, 1.5]),
        ("crops", [-1, 1, 9]),
        ("ncut", [-0.1, 1.0, float("nan")]),
        ("ncut_steps", [0, 65]),
        ("distance", ["l2", None]),
        ("min_area", [-0.1, 1.1, float("nan")]),
        ("anchors_per_side", [0, -1, 182]),
        ("resolution", [0, 7]),
        ("timestep", [-1, 1000]),
        ("tau", [-0.1, (), (1.0, -1.0), float("nan")]),
        ("weights", ["none", None, {}, {64: -1.0, 32: 2.0}]),
    ],
)
def test_values_out_of_range_are_refused_with_the_name_of_the_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{field}="):
            settings_of(**{field: value})


def test_values_at_the_ends_of_the_range_are_accepted() -> None:
    settings = settings_of(timestep=999, tau=0, anchors_per_side=1, resolution=8, weights={64: 1.0, 32: 0.0})
    assert settings.merging.tau == (0.0, 0.0, 0.0)
    assert settings_of(timestep=0).attention.timestep == 0


def test_unknown_names_are_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"preset='gogle': expected one of default, paper, google"):
        settings_of("gogle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown settings noise, taus: expected some of .*\btau\b"):
        settings_of(taus=1, noise="none")


def test_settings_cannot_be_changed() -> None:
    for settings, name in ((settings_of(), "min_area"), (settings_of().proposals, "kmeans")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, name, 1)


def test_a_field_is_in_one_component_only() -> None:
    fields = [f.name for kind in COMPONENTS.values() for f in dataclasses.fields(kind)]
    fields += [f.name for f in dataclasses.fields(SegmenterSettings)]
    assert len(set(fields)) == len(fields)
    assert set(settings_of().flat()) == {*fields} - {*COMPONENTS}
