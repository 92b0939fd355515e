"""The settings that run.json and the fingerprint hold: one flat dictionary, whatever dataclasses the settings have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diffseg.settings import SegmenterSettings, settings_of
from pipeline.output.manifest import fingerprint_of
from pipeline.readers.names import NameSettings
from pipeline.settings import LabelSettings

DEFAULT: dict[str, Any] = {
    "affinity": None,
    "clip": None,
    "dtype": "float32",
    "format": "parquet",
    "image_field": None,
    "include_image": False,
    "max_pixels": 67108864,
    "method": {
        "anchor_layout": "even",
        "anchors_per_side": 16,
        "antialias": True,
        "assign": "nearest",
        "background_below": 0.0,
        "clip_denoise": 0.0,
        "clip_smooth": True,
        "consume": "paper",
        "crops": 0,
        "distance": "kl",
        "fit": "resize",
        "flip": False,
        "ignore_below": 0.0,
        "kmeans": False,
        "method": None,
        "min_area": 0.0,
        "ncut": 0.5,
        "ncut_steps": 1,
        "resolution": None,
        "stable": False,
        "tau": None,
        "timestep": None,
        "vote": "share",
        "walk_power": 2.0,
        "walk_radius": 0,
        "walk_seeds": 0.5,
        "walk_steps": 4,
        "weights": "paper",
    },
    "model": "tiny",
    "naming": {"caption_field": None, "labels_field": None, "names": [], "template": "{}"},
    "revision": None,
    "samples_per_shard": 256,
    "vae": None,
}
"""The settings of a default run, as version 0.1.0 wrote them before they were composed of several dataclasses."""

GOOGLE = {
    "anchor_layout": "google",
    "antialias": False,
    "assign": "peak",
    "consume": "google",
    "fit": "crop",
    "method": ["diffseg"],
    "tau": [1.1, 1.1, 1.1],
    "timestep": 300,
    "vote": "mean",
    "weights": "google",
}
CHANGED = {"weights": {"64": 1.0, "32": 0.5}, "tau": [0.9, 0.9, 0.9], "method": ["diffseg", "par"], "crops": 2}


def check(method: SegmenterSettings, changes: dict[str, Any], fingerprint: str) -> None:
    settings = LabelSettings(method=method)
    expected = DEFAULT | {"method": DEFAULT["method"] | changes}
    assert json.dumps(settings.plain(), sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert fingerprint_of(settings, "ab" * 32, {"tau": [1.1], "timestep": 300}) == fingerprint


def test_a_default_run_has_the_plain_settings_and_fingerprint_of_earlier_versions() -> None:
    check(SegmenterSettings(), {}, "f3a487ed118ea731")


def test_a_preset_has_the_plain_settings_and_fingerprint_of_earlier_versions() -> None:
    check(settings_of("google"), GOOGLE, "2751f3f1b75ab861")


def test_changed_settings_have_the_plain_settings_and_fingerprint_of_earlier_versions() -> None:
    changed = settings_of(weights={64: 1.0, 32: 0.5}, tau=0.9, method="diffseg,par", crops=2)
    check(changed, CHANGED, "309a1ff9504b08d2")


def test_fields_of_naming_at_their_defaults_stay_out_of_the_fingerprint_and_others_change_it() -> None:
    names = NameSettings(names=("sky",))
    plain = LabelSettings(naming=names).plain()
    assert not {"prompt", "background_words", "merge_names"} & plain["method"].keys()
    fingerprints = {
        fingerprint_of(LabelSettings(naming=names, method=settings_of(**changes)), "ab" * 32, {})
        for changes in (
            {},
            {"prompt": "empty"},
            {"prompt": "empty", "background_words": ("wall",)},
            {"merge_names": True},
        )
    }
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("changes", "clip", "marked"),
    [
        ({"method": "cross,walk"}, None, False),
        ({"method": "cross,walk", "background_below": 0.2}, None, True),
        ({"method": "diffseg,cross", "background_below": 0.2}, None, False),
        ({"clip_smooth": False}, "/clip", True),
        ({}, "/clip", False),
    ],
)
def test_only_runs_whose_labels_changed_have_another_fingerprint_than_in_earlier_versions(
    changes: dict[str, Any], clip: str | None, marked: bool
) -> None:
    settings = LabelSettings(naming=NameSettings(names=("sky",)), method=settings_of(**changes), clip=clip)
    assert ("edges" in settings.plain()) == marked


@pytest.mark.parametrize(("flip", "affinity"), [(False, "/state"), (True, None), (True, "/state")])
def test_a_flip_beside_an_affinity_has_another_fingerprint_than_in_earlier_versions(
    flip: bool, affinity: str | None
) -> None:
    method = settings_of(flip=flip, method="diffseg,walk")
    settings = LabelSettings(method=method, affinity=affinity)
    assert ("mirrored_affinity" in settings.plain()) == (flip and affinity is not None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": settings_of(prompt="caption")}, "prompt caption: expected a caption field"),
        ({"method": settings_of(background_words=("wall",))}, "background words stand beside the names"),
    ],
)
def test_names_beside_the_pass_need_what_they_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSettings(naming=NameSettings(names=("sky",)), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "s3://key:planted@bucket/sd"}, r"^s3://bucket/sd: a model's URL with a user name, a password"),
        ({"vae": "https://host/sd?sig=planted"}, r"^https://host/sd: a model's URL .* --storage-options$"),
        ({"model": "s3://bucket/sd", "revision": "v2"}, r"revision 'v2': only a hub id has revisions"),
        ({"model": "pipe://cat"}, "refused"),
        ({"vae": "simplecache::s3://bucket/x"}, "refused"),
    ],
)
def test_locations_with_secrets_or_needless_revisions_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        LabelSettings(**settings)  # type: ignore[arg-type]
    assert "planted" not in str(refused.value)


def test_a_run_without_features_has_the_fingerprint_of_earlier_versions() -> None:
    assert "features" not in LabelSettings().plain()
    assert LabelSettings(features=True).plain()["features"] is True


def test_a_run_without_a_score_of_quality_has_the_fingerprint_of_earlier_versions() -> None:
    plain = LabelSettings().plain()
    assert "quality" not in plain
    assert not {"variants", "variant_timestep", "covariance_segments", "covariance_above"} & set(plain["method"])
    assert LabelSettings(quality=True).plain()["quality"] is True
    with pytest.raises(ValueError, match="quality would have no effect"):
        LabelSettings(network="trained", quality=True)
