"""A factory of affinity states."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from diffseg.affinity.state import AffinityState, Kind, PassConditions

MakeState = Callable[[Kind, Mapping[str, int], Mapping[str, torch.Tensor]], AffinityState]


@pytest.fixture
def make_state() -> MakeState:
    """Return a function that makes a state from its kind, layout and tensors."""

    def make(kind: Kind, layout: Mapping[str, int], tensors: Mapping[str, torch.Tensor]) -> AffinityState:
        return AffinityState(
            kind=kind,
            model="tiny",
            model_sha256="ab" * 32,
            timestep=300,
            resolution=128,
            layout=layout,
            tensors=tensors,
        )

    return make


@pytest.fixture
def conditions() -> PassConditions:
    """The conditions of the passes that the states of `make_state` were learned from."""
    return PassConditions(model_sha256="ab" * 32, timestep=300, resolution=128, layers={"8x8": ["first", "second"]})
