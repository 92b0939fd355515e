"""Parts of a run that cannot be combined are refused with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from diffseg.compatibility import check_compiled
from diffseg.settings import settings_of


@pytest.mark.parametrize(
    ("need", "settings", "quality", "message"),
    [
        ("clip", {"clip_guide": "features"}, False, "clip_guide=features .* use clip_guide=attention"),
        ("cross_attention", {"vote": "goca"}, False, "vote=goca .* use another vote"),
        ("features", {}, False, "features .* leave out features and references"),
        ("layer_output", {"ncut_on": "features"}, False, "ncut_on=features .* use ncut_on=attention"),
        ("variants", {}, True, "quality .* leave out quality"),
        ("variants", {}, False, "covariance .* use another stage"),
    ],
)
def test_signals_that_compiled_graphs_cannot_give_are_refused(
    need: str, settings: dict[str, Any], quality: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=f"compile and {message}"):
        check_compiled({"self_attention", need}, settings_of(**settings), quality=quality)


def test_attention_and_unguided_names_can_be_recorded_from_compiled_graphs() -> None:
    check_compiled({"self_attention", "cross_attention", "clip"}, settings_of(), quality=False)
