"""The settings that run.json and the fingerprint hold: one flat dictionary, whatever dataclasses the settings have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diffseg.settings import SegmenterSettings, settings_of
from pipeline.output.manifest import fingerprint_of
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
