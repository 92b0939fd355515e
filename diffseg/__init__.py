"""Images in, label maps out: DiffSeg (CVPR 2024) on any Stable Diffusion checkpoint."""

from diffseg.decide import IGNORE, Segment, Segmentation
from diffseg.images import ImageError
from diffseg.layout import CheckpointError
from diffseg.segmenter import NonFiniteError, Segmenter, segment_attention
from diffseg.settings import SegmenterSettings

__all__ = [
    "IGNORE",
    "CheckpointError",
    "ImageError",
    "NonFiniteError",
    "Segment",
    "Segmentation",
    "Segmenter",
    "SegmenterSettings",
    "segment_attention",
]
