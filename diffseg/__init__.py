"""Label maps of images, computed by DiffSeg (CVPR 2024) with any Stable Diffusion checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffseg.from_attention import segment_attention as segment_attention
    from diffseg.images.decode import ImageError as ImageError
    from diffseg.model.layout import CheckpointError as CheckpointError
    from diffseg.pending import NonFiniteError as NonFiniteError
    from diffseg.research import aggregated_attention as aggregated_attention
    from diffseg.research import attention_maps as attention_maps
    from diffseg.research import proposals as proposals
    from diffseg.segmentation import IGNORE as IGNORE
    from diffseg.segmentation import Segment as Segment
    from diffseg.segmentation import Segmentation as Segmentation
    from diffseg.segmenter import Segmenter as Segmenter
    from diffseg.settings import SegmenterSettings as SegmenterSettings

# torch and diffusers take seconds to import, and `--help` needs neither, so a name is imported on first access.
_MODULES = {
    "IGNORE": "segmentation",
    "CheckpointError": "model.layout",
    "ImageError": "images.decode",
    "NonFiniteError": "pending",
    "Segment": "segmentation",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "SegmenterSettings": "settings",
    "aggregated_attention": "research",
    "attention_maps": "research",
    "proposals": "research",
    "segment_attention": "from_attention",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'diffseg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffseg.{_MODULES[name]}"), name)
