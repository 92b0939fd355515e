"""Settings of the method, and the presets `default`, `paper` and `google`.

Each difference between the paper and google/diffseg is either a field here or listed in CONTRIBUTING as not reproduced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Weights = Literal["paper", "google", "uniform"] | Mapping[int, float]
"""How much each resolution counts: see `diffseg.attention.aggregate.resolution_weights`."""
AnchorLayout = Literal["even", "google"]
Consume = Literal["paper", "google"]
StageName = Literal["diffseg", "ncut", "affinity", "par", "walk", "cross", "clip"]
Vote = Literal["share", "mean", "mode"]
Distance = Literal["kl", "js", "hellinger", "pearson", "wasserstein", "sliced", "gaussian"]
Assign = Literal["nearest", "peak"]
Fit = Literal["resize", "letterbox", "crop"]
Preset = Literal["default", "paper", "google"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """How an image becomes a label map. Where a field is None, the checkpoint's own value holds."""

    fit: Fit = "resize"
    """The whole image stretched to a square, or letterboxed in it, or its centre square alone with ignore outside."""
    resolution: int | None = None
    """Side of the square in pixels; None: what the checkpoint was trained at."""
    antialias: bool = True
    """Filter when the image is made smaller; google/diffseg does not."""
    timestep: int | None = None
    """Of the diffusion process, 0 to 999; None: the checkpoint's own, else 300. No noise is added."""
    weights: Weights = "paper"
    """Share of each resolution in the aggregated attention: paper, google, uniform, or {side: weight}."""
    method: tuple[StageName, ...] | None = None
    """Stages in order. diffseg or ncut find segments by merging or by normalised cuts of self-attention; par lets their
    borders follow the image; walk spreads scores along the attention from where they are sure; affinity, as the first,
    puts what `diffseg fit` learned in the place of the attention; cross or clip name segments, by cross-attention or by
    a CLIP of yours, or as the first find classes. None: the checkpoint's own, else diffseg; and where names are given
    clip after it if there is a CLIP, else cross."""
    ncut: float = 0.5
    """Stage ncut: a part whose best normalised cut costs this or more stays whole; 1 is no better than chance."""
    ncut_steps: int = 1
    """Stage ncut: positions are joined by random walks of this many steps over the attention."""
    stable: bool = False
    """Choose tau, or ncut's odds, by image: from half to double, the value whose segments agree best with others'."""
    anchors_per_side: int = 16
    """The anchor grid is this many squared."""
    anchor_layout: AnchorLayout = "even"
    """Over the whole grid, or in google/diffseg's integer steps."""
    tau: tuple[float, ...] | None = None
    """Merging threshold of each round in nats of symmetric KL; None: the checkpoint's own, else 1.1 three times."""
    distance: Distance = "kl"
    """What tells attention maps apart; tau stands for the same leakage between two regions with each of them."""
    consume: Consume = "paper"
    """Whether a merged proposal may be averaged into a later group too (google)."""
    kmeans: bool = False
    """Refine the proposals by k-means over all rows, as google/diffseg's demo does."""
    assign: Assign = "nearest"
    """A pixel goes to the proposal nearest to its own attention, or to the one that peaks there, as in the paper."""
    crops: int = 0
    """2 to 8: half of the attention as this many windows squared see it, at twice the resolution; 0: no windows."""
    flip: bool = False
    """Average the attention with that of the mirrored image: twice the time."""
    min_area: float = 0.0
    """Connected pieces below this share of the image go to the neighbour with the longest border; 0: all stay."""
    vote: Vote = "share"
    """How a segment's name is found: by its share of the names' attention, or as in google/diffseg by the mean, or the
    mode, of maps of one norm."""
    walk_power: float = 2.0
    """Stage walk: the attention between two positions to this power is what joins them; 1 to 8."""
    walk_steps: int = 4
    """Stage walk: at most so many steps, fewer where scores hardly change any more."""
    walk_radius: int = 0
    """Stage walk: only positions less than this many tokens apart are joined; 0: all."""
    walk_seeds: float = 0.5
    """Stage walk: scores stay where they are at least this sure, relative to where their own proposal is surest."""
    clip_smooth: bool = True
    """Stage clip: each position takes the mean of CLIP's scores where Stable Diffusion's self-attention looks."""
    clip_denoise: float = 0.0
    """Stage clip: a name whose share is nowhere this large is taken to be absent; 0: none is, as is right for names
    that an image's labels promise; MaskCLIP's is 0.5."""
    background_below: float = 0.0
    """A segment whose name scores less is background; 0 to 1."""
    ignore_below: float = 0.0
    """A segment whose name scores less, and that is not background, gets no name and is ignored; 0 to 1."""

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(message)

        require(self.fit in ("resize", "letterbox", "crop"), f"fit={self.fit!r}: expected resize, letterbox or crop")
        named = isinstance(self.weights, str) and self.weights in ("paper", "google", "uniform")
        require(
            named or (isinstance(self.weights, Mapping) and min(self.weights.values(), default=-1) >= 0),
            f"weights={self.weights!r}: expected paper, google, uniform or a mapping of sides to weights ≥ 0",
        )
        require(
            self.anchor_layout in ("even", "google"), f"anchor_layout={self.anchor_layout!r}: expected even or google"
        )
        if self.method is not None:
            check_method(self.method)
        require(0 <= self.ncut < 1, f"ncut={self.ncut}: expected a cost from 0 to below 1")
        require(1 <= self.ncut_steps <= 64, f"ncut_steps={self.ncut_steps}: expected 1 to 64")
        require(self.consume in ("paper", "google"), f"consume={self.consume!r}: expected paper or google")
        require(
            self.distance in get_args(Distance),
            f"distance={self.distance!r}: expected one of {', '.join(get_args(Distance))}",
        )
        require(self.assign in ("nearest", "peak"), f"assign={self.assign!r}: expected nearest or peak")
        require(self.vote in get_args(Vote), f"vote={self.vote!r}: expected share, mean or mode")
        require(1 <= self.walk_power <= 8, f"walk_power={self.walk_power}: expected 1 to 8")
        require(1 <= self.walk_steps <= 1024, f"walk_steps={self.walk_steps}: expected 1 to 1024")
        require(self.walk_radius >= 0, f"walk_radius={self.walk_radius}: expected tokens, or 0 for no limit")
        require(0 < self.walk_seeds <= 1, f"walk_seeds={self.walk_seeds}: expected above 0 to 1")
        require(0 <= self.clip_denoise <= 1, f"clip_denoise={self.clip_denoise}: expected a share, 0 to 1")
        require(
            0 <= self.background_below <= max(self.background_below, self.ignore_below) <= 1,
            f"background_below={self.background_below}, ignore_below={self.ignore_below}: expected scores, 0 to 1",
        )
        require(self.crops in (0, *range(2, 9)), f"crops={self.crops}: expected 0, or 2 to 8 windows a side")
        require(0 <= self.min_area <= 1, f"min_area={self.min_area}: expected a share of the image, 0 to 1")
        # each anchor may become a proposal, and label maps are int16 on the device
        require(1 <= self.anchors_per_side <= 181, f"anchors_per_side={self.anchors_per_side}: expected 1 to 181")
        require(self.resolution is None or self.resolution >= 8, f"resolution={self.resolution}: expected 8 or more")
        require(self.timestep is None or 0 <= self.timestep < 1000, f"timestep={self.timestep}: expected 0 to 999")
        require(
            self.tau is None or (len(self.tau) >= 1 and all(t >= 0 for t in self.tau)),
            f"tau={self.tau}: expected one threshold ≥ 0 for each round, at least one round",
        )


PROPOSING: tuple[StageName, ...] = ("diffseg", "ncut")
NAMING: tuple[StageName, ...] = ("cross", "clip")


def check_method(method: tuple[StageName, ...]) -> None:
    """Raises ValueError where stages are unknown, or stand in an order that makes no sense."""
    said = f"method={','.join(method)}"
    if unknown := [stage for stage in method if stage not in get_args(StageName)]:
        raise ValueError(f"{said}: {unknown[0]!r} is none of the stages {', '.join(get_args(StageName))}")
    if method[:1] == ("affinity",):
        method = method[1:]
    if not method or method[0] not in PROPOSING + NAMING:
        raise ValueError(f"{said}: the first stage must be one of {', '.join(PROPOSING + NAMING)}, which find segments")
    if "affinity" in method:
        raise ValueError(f"{said}: affinity changes what all other stages read, so it must be the first")
    if any(stage in PROPOSING for stage in method[1:]) or len(set(method)) < len(method):
        raise ValueError(f"{said}: segments are found once, by the first stage, and no stage can run twice")
    if sum(stage in NAMING for stage in method) > 1:
        raise ValueError(f"{said}: segments are named once, by one of {', '.join(NAMING)}")


PRESETS: Mapping[str, SegmenterSettings] = {
    "default": SegmenterSettings(),
    "paper": SegmenterSettings(fit="crop", timestep=300, tau=(1.1, 1.1, 1.1), assign="peak", method=("diffseg",)),
    "google": SegmenterSettings(
        fit="crop",
        antialias=False,
        timestep=300,
        weights="google",
        anchor_layout="google",
        tau=(1.1, 1.1, 1.1),
        consume="google",
        assign="peak",
        method=("diffseg",),
        vote="mean",
    ),
}


def thresholds(tau: float | tuple[float, ...] | list[float], rounds: int = 3) -> tuple[float, ...]:
    """One threshold for every round: a single number is used in all three rounds of the paper."""
    if isinstance(tau, (int, float)):
        return (float(tau),) * rounds
    return tuple(float(t) for t in tau)


def settings_of(preset: Preset = "default", **overrides: Any) -> SegmenterSettings:
    """The preset with the fields that are given; `tau` may be one number for all rounds, `method` stages behind commas.

    Raises ValueError for an unknown preset, an unknown field or a value out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: expected one of {', '.join(PRESETS)}")
    known = {f.name for f in dataclasses.fields(SegmenterSettings)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    if isinstance(overrides.get("method"), str):
        overrides["method"] = tuple(overrides["method"].split(","))
    if overrides.get("tau") is not None:
        overrides["tau"] = thresholds(overrides["tau"])
    return dataclasses.replace(PRESETS[preset], **overrides)
