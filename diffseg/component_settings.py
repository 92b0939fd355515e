"""Settings of the components of the method and of its stages, one dataclass each.

The string under a field is the help text of its command-line flag. The name of a field is unique across all components,
because it is also the name of the flag, of the argument of `Segmenter.from_pretrained` and of the key in run.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Weights = Literal["paper", "google", "uniform"] | Mapping[int, float]
"""How much each resolution counts: see `diffseg.attention.aggregate.resolution_weights`."""
AnchorLayout = Literal["even", "google"]
Consume = Literal["paper", "google"]
Vote = Literal["share", "mean", "mode", "goca"]
PromptKind = Literal["names", "empty", "caption"]
Distance = Literal["kl", "js", "hellinger", "pearson", "wasserstein", "sliced", "gaussian"]
Assign = Literal["nearest", "peak"]
CutSignal = Literal["attention", "features"]
CovarianceCount = Literal["correlation", "diffseg"]
Fit = Literal["resize", "letterbox", "crop"]


def require(condition: bool, message: str) -> None:
    """Raise ValueError with a message unless a condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelInputSettings:
    """How an image becomes the square that the model reads."""

    fit: Fit = "resize"
    """How an image fills the square: `resize` stretches it, `letterbox` keeps its proportions and pads the rest, `crop`
    takes the centre square and marks the pixels outside as ignored."""
    resolution: int | None = None
    """Side of the square in pixels. None uses the size that the checkpoint was trained at."""
    antialias: bool = True
    """Apply an antialiasing filter when the image is made smaller. google/diffseg does not."""

    def __post_init__(self) -> None:
        require(self.fit in get_args(Fit), f"fit={self.fit!r}: expected resize, letterbox or crop")
        require(self.resolution is None or self.resolution >= 8, f"resolution={self.resolution}: expected 8 or more")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """How self-attention is recorded and aggregated."""

    timestep: int | None = None
    """Diffusion timestep of the pass, 0 to 999. None uses the checkpoint's own, else 300. No noise is added."""
    weights: Weights = "paper"
    """Share of each resolution in the aggregated attention: paper, google, uniform, or {side: weight}."""
    crops: int = 0
    """Crops per side, 2 to 8. The model also sees this many crops squared at twice the resolution, and half of the
    attention comes from them. 0 uses no crops."""
    flip: bool = False
    """Average the attention with that of the mirrored image. This doubles the time."""

    def __post_init__(self) -> None:
        is_named = isinstance(self.weights, str) and self.weights in ("paper", "google", "uniform")
        require(
            is_named or (isinstance(self.weights, Mapping) and min(self.weights.values(), default=-1) >= 0),
            f"weights={self.weights!r}: expected paper, google, uniform or a mapping of sides to weights ≥ 0",
        )
        require(self.crops in (0, *range(2, 9)), f"crops={self.crops}: expected 0, or 2 to 8 crops per side")
        require(self.timestep is None or 0 <= self.timestep < 1000, f"timestep={self.timestep}: expected 0 to 999")


@dataclass(frozen=True, kw_only=True)
class ProposalSettings:
    """What the stages diffseg and ncut share: how proposals are chosen, refined and assigned to pixels."""

    stable: bool = False
    """Choose tau, or the odds of the ncut cost, separately for each image: of values from half to double the setting,
    the one whose segments agree best with those of the others."""
    distance: Distance = "kl"
    """Distance between attention maps. With each of them, tau stands for the same leakage between two regions."""
    kmeans: bool = False
    """Refine the proposals by k-means over all rows of the attention, as google/diffseg's demo does."""
    assign: Assign = "nearest"
    """Assign a pixel to the proposal nearest to its own attention map, or, as in the paper, to the proposal that is
    highest at the pixel (peak)."""

    def __post_init__(self) -> None:
        require(
            self.distance in get_args(Distance),
            f"distance={self.distance!r}: expected one of {', '.join(get_args(Distance))}",
        )
        require(self.assign in get_args(Assign), f"assign={self.assign!r}: expected nearest or peak")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Stage diffseg: iterative merging of attention maps (DiffSeg section 3.3)."""

    anchors_per_side: int = 16
    """Side of the square grid of anchors: 16 gives 256 anchors."""
    anchor_layout: AnchorLayout = "even"
    """Spread the anchors evenly over the whole grid, or place them in google/diffseg's integer steps."""
    tau: tuple[float, ...] | None = None
    """Merging threshold of each round, in nats of symmetric KL. None uses the checkpoint's own, else 1.1 in three
    rounds."""
    consume: Consume = "paper"
    """Whether a merged proposal may also be averaged into a later group (google) or not (paper)."""

    def __post_init__(self) -> None:
        require(
            self.anchor_layout in get_args(AnchorLayout),
            f"anchor_layout={self.anchor_layout!r}: expected even or google",
        )
        require(self.consume in get_args(Consume), f"consume={self.consume!r}: expected paper or google")
        # Each anchor may become a proposal, and label maps are int16 on the device.
        require(1 <= self.anchors_per_side <= 181, f"anchors_per_side={self.anchors_per_side}: expected 1 to 181")
        require(
            self.tau is None or (len(self.tau) >= 1 and all(t >= 0 for t in self.tau)),
            f"tau={self.tau}: expected one threshold ≥ 0 for each round, at least one round",
        )


@dataclass(frozen=True, kw_only=True)
class NcutSettings:
    """Stage ncut: a K-way normalised cut."""

    ncut: float = 0.5
    """Stage ncut: an image has as many parts, at most 20, as independent cuts that cost less than this in the relaxed
    problem. A cost of 1 is no better than chance."""
    ncut_steps: int = 1
    """Stage ncut: number of random-walk steps over the attention that join two positions."""
    ncut_on: CutSignal = "attention"
    """Stage ncut: what joins two positions: the flow of self-attention, or the likeness of features, which are the
    output of the last self-attention layer on the way down (DiffCut)."""

    def __post_init__(self) -> None:
        require(0 <= self.ncut < 1, f"ncut={self.ncut}: expected a cost from 0 to below 1")
        require(1 <= self.ncut_steps <= 64, f"ncut_steps={self.ncut_steps}: expected 1 to 64")
        require(self.ncut_on in get_args(CutSignal), f"ncut_on={self.ncut_on!r}: expected attention or features")
        require(
            self.ncut_on == "attention" or self.ncut_steps == 1,
            f"ncut_on={self.ncut_on}, ncut_steps={self.ncut_steps}: only attention has steps",
        )


@dataclass(frozen=True, kw_only=True)
class CovarianceSettings:
    """Stage covariance, and the score that `diffseg label --quality` stores: variants of an image by noise."""

    variants: int = 16
    """Stage covariance, and --quality: number of variants of each image, each of which costs one more pass of the
    UNet."""
    variant_timestep: int = 10
    """Stage covariance, and --quality: diffusion timestep of the variants, 0 to 999: how much noise is added."""
    covariance_segments: int | CovarianceCount = "correlation"
    """Stage covariance: number of segments, 1 to 256; or diffseg, for as many as that stage finds; or correlation, to
    join clusters that respond alike to the noise."""
    covariance_above: float = 0.2
    """Stage covariance: correlation above which two clusters are joined, −1 to 1."""

    def __post_init__(self) -> None:
        require(2 <= self.variants <= 1024, f"variants={self.variants}: expected 2 to 1024")
        require(0 <= self.variant_timestep < 1000, f"variant_timestep={self.variant_timestep}: expected 0 to 999")
        count = self.covariance_segments
        require(
            count in get_args(CovarianceCount) or (isinstance(count, int) and 1 <= count <= 256),
            f"covariance_segments={count!r}: expected 1 to 256, {' or '.join(get_args(CovarianceCount))}",
        )
        require(
            -1 <= self.covariance_above <= 1,
            f"covariance_above={self.covariance_above}: expected a correlation, -1 to 1",
        )


@dataclass(frozen=True, kw_only=True)
class WalkSettings:
    """Stage walk: a random walk that spreads scores along the self-attention."""

    walk_power: float = 2.0
    """Stage walk: exponent of the attention in the transition weights, 1 to 8."""
    walk_steps: int = 4
    """Stage walk: largest number of steps. The walk ends earlier when the scores hardly change."""
    walk_radius: int = 0
    """Stage walk: positions are joined only if they are less than this many tokens apart. 0 joins all positions."""
    walk_seeds: float = 0.5
    """Stage walk: scores of a position stay fixed where its confidence is at least this share of the highest confidence
    of its proposal."""

    def __post_init__(self) -> None:
        require(1 <= self.walk_power <= 8, f"walk_power={self.walk_power}: expected 1 to 8")
        require(1 <= self.walk_steps <= 1024, f"walk_steps={self.walk_steps}: expected 1 to 1024")
        require(self.walk_radius >= 0, f"walk_radius={self.walk_radius}: expected tokens, or 0 for no limit")
        require(0 < self.walk_seeds <= 1, f"walk_seeds={self.walk_seeds}: expected above 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SegmentNameSettings:
    """What the stages cross and clip share: how a segment gets its name."""

    vote: Vote = "share"
    """How a segment gets its name: from each name's share of the attention; from that share with weights of heads and
    layers (goca, stage cross only); or, as in google/diffseg, from the mean or the mode of the names' maps after all
    are scaled to the same norm."""
    background_below: float = 0.0
    """A segment whose name scores less than this is background; 0 to 1."""
    ignore_below: float = 0.0
    """A segment whose name scores less than this, and which is not background, gets no name and is ignored; 0 to 1."""
    prompt: PromptKind = "names"
    """Stage cross: what conditions the pass. names: the names of the image, or its caption, from which the names are
    recorded; names that do not fit one prompt cost further passes. empty or caption: the empty prompt or the caption,
    while any number of names is recorded beside the pass; with empty, masks are those of a run without names."""
    background_words: tuple[str, ...] = ()
    """Words for what none of the names shows, such as sky,wall,floor. What belongs to one of these words more than to
    any name is background. Needs prompt empty or caption, or the stage clip."""
    merge_names: bool = False
    """Merge all segments of an image that have the same name into one."""

    def __post_init__(self) -> None:
        require(
            self.prompt in get_args(PromptKind), f"prompt={self.prompt!r}: expected {', '.join(get_args(PromptKind))}"
        )
        require(self.vote in get_args(Vote), f"vote={self.vote!r}: expected share, mean, mode or goca")
        require(
            0 <= self.background_below <= max(self.background_below, self.ignore_below) <= 1,
            f"background_below={self.background_below}, ignore_below={self.ignore_below}: expected scores, 0 to 1",
        )


ClipTemplates = Literal["short", "imagenet"]
ClipGuide = Literal["none", "attention", "features"]


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """Stage clip: names by a CLIP."""

    clip_smooth: bool = True
    """Stage clip: average CLIP's scores of each position over the positions that Stable Diffusion's self-attention
    attends to."""
    clip_denoise: float = 0.0
    """Stage clip: treat a name as absent if its share does not reach this value at any position. 0 keeps all names,
    which is right for names that an image's labels promise; MaskCLIP uses 0.5."""
    clip_templates: ClipTemplates = "short"
    """Stage clip: the texts that are made of a name: seven short ones, or the 80 that CLIP's authors use for
    ImageNet."""
    clip_window: int = 0
    """Stage clip: side, in pixels, of overlapping windows in which the CLIP reads the image. 0 reads it as a whole.
    ProxyCLIP uses 336."""
    clip_stride: int = 0
    """Stage clip: pixels from one window to the next; 0 is half a window. ProxyCLIP uses 112."""
    clip_guide: ClipGuide = "none"
    """Stage clip: what takes the place of the attention in the CLIP's last layer: none, so that positions are not
    mixed (MaskCLIP), or Stable Diffusion's self-attention or the similarity of its features (ProxyCLIP)."""
    clip_guide_shift: float = 1.2
    """Stage clip, with a guide: positions that are less similar than this many times the mean are not mixed."""
    clip_guide_scale: float = 3.0
    """Stage clip, with a guide: how much more the most similar positions count than others; 0 counts all alike."""

    def __post_init__(self) -> None:
        require(0 <= self.clip_denoise <= 1, f"clip_denoise={self.clip_denoise}: expected a share, 0 to 1")
        for field, choices in (("clip_templates", ClipTemplates), ("clip_guide", ClipGuide)):
            require(
                getattr(self, field) in get_args(choices),
                f"{field}={getattr(self, field)!r}: expected {', '.join(get_args(choices))}",
            )
        require(
            0 <= self.clip_stride <= self.clip_window,
            f"clip_window={self.clip_window}, clip_stride={self.clip_stride}: expected pixels, 0 or more, and a stride "
            "of at most a window",
        )
        require(
            0 <= self.clip_guide_shift <= 100 and 0 <= self.clip_guide_scale <= 100,
            f"clip_guide_shift={self.clip_guide_shift}, clip_guide_scale={self.clip_guide_scale}: expected 0 to 100",
        )
