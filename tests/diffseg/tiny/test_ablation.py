"""The ablation: its rows, and their comparison with the default settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffseg.settings import SegmenterSettings, StageName, settings_of
from diffseg.tiny.evaluation.ablation import VARIANTS, Ablation, main, methods_of
from diffseg.tiny.evaluation.samples import SampleChoice


@pytest.mark.parametrize("default_method", [("diffseg",), ("diffseg", "par")], ids=["plain", "par"])
def test_equal_settings_share_one_row(default_method: tuple[StageName, ...], tmp_path: Path) -> None:
    (tmp_path / "diffseg.json").write_text(json.dumps({"method": default_method}))
    names = list(methods_of(Ablation(model=tmp_path)))
    assert names[0] == "default"
    assert len(names) < len(VARIANTS), "rows that equal the default are left out"

    def resolved(name: str) -> SegmenterSettings:
        settings = settings_of(**VARIANTS[name])
        return replace(settings, method=settings.method or default_method)

    kept = [resolved(name) for name in names]
    assert len(set(kept)) == len(kept)
    assert set(kept) == {resolved(name) for name in VARIANTS}


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ValueError, match="expected some of default, plain DiffSeg"):
        Ablation(rows=("no such thing",))


def test_a_row_is_compared_with_the_default(tmp_path: Path) -> None:
    samples = SampleChoice(images=1, size=128, scenes="validation")
    main(Ablation(samples=samples, rows=("distance=hellinger",), out=tmp_path))
    default, other = json.loads((tmp_path / "ablation.json").read_text())
    assert (default["method"], other["method"]) == ("default", "distance=hellinger")
    gain = other["scores"]["covering"]["mean"] - default["scores"]["covering"]["mean"]
    assert other["gain"]["covering"]["mean"] == pytest.approx(gain)
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert table[0] == "### validation scenes: 1 images"
    assert table[4].startswith("| default ")
    assert f"{other['scores']['covering']['mean']:.3f} (" in table[5]
