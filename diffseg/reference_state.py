"""References of names as a file, bound to the passes that they were learned from, and their use to name segments.

This module does not import torch.

Axes: N segments, E numbers of a feature, R names, V vectors: one or several for each name, and those of the background.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diffseg.centroids import DECIMALS, unit
from diffseg.safetensors_metadata import read_metadata
from diffseg.segmentation import BACKGROUND

FILE_NAME = "references.safetensors"
"""Name of the file in the folder that `diffseg fit references` writes."""

FORMAT = "diffseg references 1"
"""Key of the metadata in the file of references; its number is the version of the format."""

BACKGROUND_OWNER = -1
"""Owner of a vector that belongs to the background and to no name."""


class ReferencesError(ValueError):
    """References that cannot be used. The message says what was expected and what was found."""


def pass_conditions(
    *, model_sha256: str, timestep: int, resolution: int, layers: Sequence[str], conditioning: Mapping[str, float]
) -> dict[str, Any]:
    """Return what features depend on, as files of references hold it.

    Args:
        model_sha256: Hash of the checkpoint.
        timestep: Diffusion timestep of the pass.
        resolution: Side of the model's square in pixels; with the layers it determines the grids.
        layers: Names of the layers whose inputs are joined, see `diffseg.method.segment_features.feature_layers`.
        conditioning: What besides text conditions the pass, see `diffseg.model.backbone.Backbone.conditioning`.
    """
    bound = {"model_sha256": model_sha256, "timestep": timestep, "resolution": resolution, "layers": list(layers)}
    return bound | ({"conditioning": dict(conditioning)} if conditioning else {})


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """References of names, with what they are bound to.

    Attributes:
        names: The names.
        vectors: float32 [V, E], each of length 1.
        mean: float32 [E], the mean feature of the corpus, which features are relative to.
        bound: What features depend on, see `pass_conditions`.
        settings: How the references were learned.
        owners: int [V], the index in `names` of the name that each vector belongs to, or `BACKGROUND_OWNER`; None if
            each name has one vector, in the same order.
    """

    names: tuple[str, ...]
    vectors: np.ndarray
    mean: np.ndarray
    bound: Mapping[str, Any]
    settings: Mapping[str, Any]
    owners: np.ndarray | None = None

    @property
    def vector_owners(self) -> np.ndarray:
        """The index in `names` of the name of each vector, or `BACKGROUND_OWNER`, int64 [V]."""
        return np.arange(len(self.names)) if self.owners is None else self.owners.astype(np.int64)

    @property
    def has_background(self) -> bool:
        """Whether some vectors belong to the background."""
        return bool((self.vector_owners == BACKGROUND_OWNER).any())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def cosines(self, features: np.ndarray) -> np.ndarray:
        """Return the cosine of features [N, E] with the nearest vector of each name, float64 [N, R]."""
        return self.of_owners(self._of_vectors(features))[:, : len(self.names)]

    def _of_vectors(self, features: np.ndarray) -> np.ndarray:
        return unit(features.astype(np.float64) - self.mean) @ self._units.T

    @cached_property
    def _units(self) -> np.ndarray:
        return unit(self.vectors)

    def of_owners(self, cosines: np.ndarray) -> np.ndarray:
        """Return the highest cosine of each name and, in the last column, of the background.

        Args:
            cosines: float64 [N, V], the cosine with each vector.

        Returns:
            float64 [N, R + 1]. Without vectors of the background the last column is −1.
        """
        best = np.full((len(cosines), len(self.names) + 1), -1.0)
        columns = np.where(self.vector_owners == BACKGROUND_OWNER, len(self.names), self.vector_owners)
        np.maximum.at(best.T, columns, cosines.T)
        return best

    def name_segments(
        self,
        features: np.ndarray,
        possible: Collection[str] | None = None,
        *,
        background_below: float = 0.0,
        ignore_below: float = 0.0,
    ) -> list[tuple[str | None, float]]:
        """Return the name of each segment and its score, the cosine with the nearest vector, or 0 if that is negative.

        Args:
            features: float [N, E], as the model gave them.
            possible: The names that segments may get; None for all. If it has no name of these references, all segments
                are background with score 1.
            background_below: Segments with a lower score are background.
            ignore_below: Other segments with a lower score get no name.
        """
        allowed = {*self.names} if possible is None else {*possible}
        places = [place for place, name in enumerate(self.names) if name in allowed]
        if not places:
            return [(BACKGROUND, 1.0)] * len(features)
        cosines = self.of_owners(self._of_vectors(features))[:, [*places, len(self.names)]]
        if self.owners is not None:
            cosines = np.round(cosines, DECIMALS)  # the pool of the background wins only where it is really nearer
        given: list[tuple[str | None, float]] = []
        for best, cosine in zip(cosines.argmax(axis=1), cosines.max(axis=1), strict=True):
            name = BACKGROUND if best == len(places) else self.names[places[best]]
            score = float(np.float32(max(0.0, cosine)))
            if score < background_below:
                given.append((BACKGROUND, score))
            else:
                given.append((None if name != BACKGROUND and score < ignore_below else name, score))
        return given

    def check_fits(self, now: Mapping[str, Any]) -> None:
        """Check that the references were learned from features like those of a run.

        Args:
            now: What features depend on in the run, see `pass_conditions`.

        Raises:
            ReferencesError: The model, the timestep, the resolution, the layers or the conditioning differ.
        """
        fields = sorted({*self.bound, *now})
        lines = [
            f"  {field}: {self.bound.get(field)!r} in the references, {now.get(field)!r} in this run"
            for field in fields
            if self.bound.get(field) != now.get(field)
        ]
        if lines:
            raise ReferencesError("\n".join(["the references are of other features:", *lines]))

    def to_bytes(self) -> bytes:
        """Return a safetensors file, which has the same bytes for the same references."""
        fields = {"names": list(self.names), "bound": dict(self.bound), "settings": dict(self.settings)}
        metadata = {FORMAT: json.dumps(fields, sort_keys=True)}
        tensors = {"mean": self.mean.astype("<f4"), "references": self.vectors.astype("<f4")}
        if self.owners is not None:
            tensors["owners"] = self.owners.astype("<i4")
        return save(tensors, metadata=metadata)


def load_references(state: str | os.PathLike[str]) -> References:
    """Read the references of a folder that `diffseg fit references` wrote."""
    path = Path(state) / FILE_NAME
    return read_references(path.read_bytes(), str(path))


def read_references(data: bytes, source: str) -> References:
    """Read references from the bytes of a file that `diffseg fit references` wrote.

    Args:
        data: The bytes.
        source: Name of the file in messages.

    Raises:
        ValueError: The bytes are not such a file.
    """
    try:
        tensors, metadata = load(data), read_metadata(data)
        fields = json.loads(metadata[FORMAT])
        references = References(
            names=tuple(fields["names"]),
            vectors=tensors["references"],
            mean=tensors["mean"],
            bound=fields["bound"],
            settings=fields["settings"],
            owners=tensors.get("owners"),
        )
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: is not a file of `diffseg fit references` ({error!r})") from error
    owners = references.vector_owners
    fits = references.vectors.shape == (len(owners), *references.mean.shape) and owners.ndim == 1
    if not fits or not set(owners.tolist()) <= {BACKGROUND_OWNER, *range(len(references.names))}:
        raise ValueError(f"{source}: its {len(references.names)} names do not fit its tensors")
    return references
