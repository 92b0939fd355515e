"""Settings of a generation. The string under a field is the help text of its command-line flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from diffseg.component_settings import require
from diffseg.settings import StageName, check_method

SchedulerName = Literal["checkpoint", "ddim", "dpm++", "lcm"]


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How images are sampled, and how their label maps are made."""

    scheduler: SchedulerName = "checkpoint"
    """Sampling method: that of the checkpoint, or DDIM, DPM-Solver++ (multistep), or that of latent consistency models.
    Turbo models come with their own."""
    steps: int = 25
    """Sampling steps, 1 to 1000. Turbo models need 1 to 4, latent consistency models 4 to 8."""
    guidance: float = 7.5
    """Scale of classifier-free guidance, 1 to 100. 1 is no guidance, which halves the time and which turbo
    models need."""
    negative_prompt: str = ""
    """What images should not show. Guidance leads away from it; with a guidance of 1 it has no effect."""
    size: int | None = None
    """Side of the images in pixels. None uses the size that the checkpoint was trained at."""
    method: tuple[StageName, ...] = ("cross", "walk", "par")
    """Stages that make the label map, as in `diffseg label`. The default finds the classes in the cross-attention,
    spreads them along the self-attention and aligns their borders with the image; diffseg,cross finds segments in the
    self-attention and names them."""
    record_from: int = 0
    """Cross-attention is the mean over the steps whose diffusion timestep is at least this, 0 to 999."""
    record_to: int = 999
    """Cross-attention is the mean over the steps whose diffusion timestep is at most this, 0 to 999."""
    uncertain: float = 0.1
    """Width of the band of scores around the threshold of a class in which pixels are ignored, 0 to below 1. Scores are
    scaled so that the highest is 1 and the threshold is 0.5. 0 ignores no pixels. Used if the first stage finds
    classes."""

    def __post_init__(self) -> None:
        require(
            self.scheduler in get_args(SchedulerName),
            f"scheduler={self.scheduler!r}: expected one of {', '.join(get_args(SchedulerName))}",
        )
        require(1 <= self.steps <= 1000, f"steps={self.steps}: expected 1 to 1000")
        require(1 <= self.guidance <= 100, f"guidance={self.guidance}: expected 1 to 100; 1 is no guidance")
        require(self.size is None or self.size >= 8, f"size={self.size}: expected 8 pixels or more")
        check_method(self.method)
        require(
            0 <= self.record_from <= self.record_to < 1000,
            f"record_from={self.record_from}, record_to={self.record_to}: expected a range within 0 to 999",
        )
        require(0 <= self.uncertain < 1, f"uncertain={self.uncertain}: expected a width from 0 to below 1")
