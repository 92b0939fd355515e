"""Names by references (`diffseg.references`): of the segments of a label map, and of the positions of a pass.

Axes: B images, E numbers of a feature, T largest number of names of an image, V vectors, h and w of a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffseg.component_settings import SegmentNameSettings
from diffseg.reference_state import BACKGROUND_OWNER, References
from diffseg.segmentation import Features, Segmentation


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentNaming:
    """Names the segments of label maps by references.

    Attributes:
        references: The references.
        settings: The thresholds below which a segment is background or has no name.
    """

    references: References
    settings: SegmentNameSettings

    def name(self, segmentation: Segmentation, features: Features, names: Sequence[str]) -> Segmentation:
        """Return a segmentation whose segments have names, the same that `diffseg name` gives them.

        Args:
            segmentation: The label map.
            features: Its features.
            names: The names that the image may show.
        """
        given = self.references.name_segments(
            features.segments,
            names,
            background_below=self.settings.background_below,
            ignore_below=self.settings.ignore_below,
        )
        segments = tuple(
            dataclasses.replace(segment, name=name, name_score=score)
            for segment, (name, score) in zip(segmentation.segments, given, strict=True)
        )
        return dataclasses.replace(segmentation, segments=segments)


def reference_maps(features: torch.Tensor, references: References, names: Sequence[Sequence[str]]) -> torch.Tensor:
    """Return how similar each position is to the references of each name.

    Args:
        features: float16 [B, E, h, w], see `diffseg.method.segment_features.project`.
        references: The references.
        names: The names of each image.

    Returns:
        float32 [B, T, h, w]: the cosine with the nearest vector of a name. It is 0 where it is negative, for names that
        have no reference, and for names that an image lacks. If the references have vectors of the background, one last
        map is that of the background.
    """
    vectors = F.normalize(torch.from_numpy(references.vectors).to(features.device).float(), dim=1)
    mean = torch.from_numpy(references.mean).to(features.device).float()
    owners = torch.from_numpy(references.vector_owners).to(features.device)
    place = {name: number for number, name in enumerate(references.names)}
    most = max(1, *map(len, names))
    maps = features.new_zeros((len(names), most + references.has_background, *features.shape[2:]), dtype=torch.float32)
    for image, of_image in enumerate(names):
        positions = F.normalize(features[image].float() - mean[:, None, None], dim=0)
        wanted = [(column, place[name]) for column, name in enumerate(of_image) if name in place]
        wanted += [(most, BACKGROUND_OWNER)] * references.has_background
        for column, owner in wanted:
            cosines = torch.einsum("ve,ehw->vhw", vectors[owners == owner], positions)
            maps[image, column] = cosines.amax(dim=0).clamp_(0, 1)
    return maps
