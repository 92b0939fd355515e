"""Images in, label maps out: DiffSeg (CVPR 2024) on any Stable Diffusion checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffseg.from_attention import segment_attention as segment_attention
    from diffseg.images.decode import ImageError as ImageError
    from diffseg.model.layout import CheckpointError as CheckpointError
    from diffseg.pending import NonFiniteError as NonFiniteError
    from diffseg.segmentation import IGNORE as IGNORE
    from diffseg.segmentation import Segment as Segment
    from diffseg.segmentation import Segmentation as Segmentation
    from diffseg.segmenter import Segmenter as Segmenter
    from diffseg.settings import SegmenterSettings as SegmenterSettings

# torch and diffusers take seconds to import, so a name is loaded when it is asked for: `--help` needs none of them.
_HOME = {
    "IGNORE": "segmentation",
    "CheckpointError": "model.layout",
    "ImageError": "images.decode",
    "NonFiniteError": "pending",
    "Segment": "segmentation",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "SegmenterSettings": "settings",
    "segment_attention": "from_attention",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffseg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffseg.{_HOME[name]}"), name)
