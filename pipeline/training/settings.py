"""Settings of training, one dataclass per component. The command line is made from them, so they import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from diffseg.levels import Cut
from pipeline.output.selection import RowSelection
from pipeline.training.recipes.settings import FROM_IMAGES, IGNORE_INDEX, RecipeSettings, Target


@dataclass(frozen=True, kw_only=True)
class RowFilter:
    """Which rows are used for training. Rows without a label map never are."""

    confidence: float = 0.0
    """Lowest confidence of the image, 0 to 1."""
    segments: tuple[int, int | None] = (1, None)
    """Smallest and largest number of segments; None for no upper bound."""
    segment_confidence: float = 0.0
    """Lowest confidence of a segment, 0 to 1. The pixels of other segments are ignored; the row is kept."""
    selection: RowSelection = field(default_factory=RowSelection)
    """Rows that are used, by an expression over their columns, by keys, and by a stable split."""

    @property
    def columns(self) -> frozenset[str]:
        """Columns of a row that `accepts` reads."""
        return self.selection.columns | {"status", "confidence", "n_segments"}

    def accepts(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row is used: its status, confidence, number of segments and the selection decide."""
        min_segments, max_segments = self.segments
        return (
            row["status"] == "ok"
            and row["confidence"] >= self.confidence
            and min_segments <= row["n_segments"]
            and (max_segments is None or row["n_segments"] <= max_segments)
            and self.selection.accepts(row)
        )


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Which samples a `LabelDataset` yields, in which order, and how they are augmented."""

    size: int = 256
    """Side of the square samples, in pixels."""
    crop: float = 0.5
    """Smallest side of a random square crop, as a share of the image's shorter side, in (0, 1]. 1 takes the centre
    square."""
    flip: bool = True
    """Mirror each sample with probability ½."""
    splice: int = 1
    """Largest number of tiles in a row and in a column of a spliced sample, which is a grid of images, each cropped and
    mirrored by itself with its label map. 1 splices nothing."""
    splice_share: float = 0.5
    """Share of the samples that are spliced, 0 to 1, if `splice` is above 1."""
    target: Target = "segments"
    """What masks hold. segments: segment ids, which mean something within their image only. classes: class ids, for a
    run with names: 0 is the background, and 1, 2, … are the names in run.json in their order. Segments between the two
    name thresholds are ignored."""
    image_classes: bool = False
    """Also yield which classes each image shows, from the names of its used segments, for target `classes`."""
    rows: RowFilter = field(default_factory=RowFilter)
    """Which rows and which segments are used."""
    level: Cut | None = None
    """Another level of the label maps of a run with levels; None takes those of the rows."""
    shuffle_buffer: int = 1000
    """Encoded samples that are held in memory to be shuffled; 1 keeps the order within label shards."""
    ignore_index: int = IGNORE_INDEX
    """Mask value of pixels that belong to no segment or to a segment that is not used."""
    seed: int = 0
    """Seed of orders, crops and flips."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.shuffle_buffer < 1 or not 0 < self.crop <= 1:
            raise ValueError(
                f"size={self.size}, shuffle_buffer={self.shuffle_buffer}, crop={self.crop}: expected size and "
                "shuffle_buffer of at least 1, and crop in (0, 1]"
            )
        check_splice(self.splice, self.splice_share, self.size)


def check_splice(splice: int, share: float, size: int) -> None:
    """Raise ValueError for grids that do not fit into a sample of `size` x `size` pixels, or for a wrong share."""
    if not 1 <= splice <= size or not 0 <= share <= 1:
        raise ValueError(f"splice {splice}, share {share}: expected 1 to {size} tiles, and a share from 0 to 1")


ADDED_LATER = (
    *("recipe", "pixel_targets", "ptc_weight", "ctc_weight", "text_model"),
    *("network", "backbone", "splice", "splice_share"),
)
"""Settings that train.json leaves out where they have their defaults, so that trainings that began
before these settings existed continue."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RecipeSettings):
    """The settings that determine the network, together with the run, the number of workers and library versions."""

    batch_size: int = 8
    """Images per step on each worker."""
    confidence: float = 0.0
    """Train only on images with at least this confidence, 0 to 1."""
    segment_confidence: float = 0.0
    """Ignore the pixels of segments below this confidence, 0 to 1."""
    splice: int = 1
    """Splice samples from up to this many images in each direction, as an augmentation: 3 makes grids of 1 x 2 to
    3 x 3 images. 1 splices nothing."""
    splice_share: float = 0.5
    """Share of the samples that --splice makes from several images, 0 to 1."""
    seed: int = 0
    """Seed of weights, orders, crops and sampled pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"batch size {self.batch_size}: expected at least 1 image")
        check_splice(self.splice, self.splice_share, self.size)

    def plain(self) -> dict[str, Any]:
        """Return the settings as train.json holds them."""
        plain = asdict(self)
        for name in ADDED_LATER:
            if plain[name] == getattr(TrainSettings, name):
                del plain[name]
        return plain

    def dataset(self, selection: RowSelection) -> DatasetSettings:
        """Return the settings of the training samples, which are taken from these rows."""
        rows = RowFilter(confidence=self.confidence, segment_confidence=self.segment_confidence, selection=selection)
        return DatasetSettings(
            size=self.size,
            target=self.target,
            seed=self.seed,
            rows=rows,
            splice=self.splice,
            splice_share=self.splice_share,
            image_classes=self.recipe in FROM_IMAGES,
        )


@dataclass(frozen=True, kw_only=True)
class TrainRunSettings:
    """How a training is carried out."""

    workers: int = 1
    """Processes that share each step, one per GPU with --use-gpu; the number of images per step grows with them."""
    use_gpu: bool = False
    """Train on GPUs."""
    no_ray: bool = False
    """Train in this process, without Ray."""
    address: str | None = None
    """Address of a Ray cluster, HOST:PORT, or `auto` or `local`. Default: RAY_ADDRESS, else a cluster that the same
    user started with `ray start` on this machine, else a private Ray."""
    threads: int = 1
    """CPU threads of each worker; the last bits of the weights depend on it."""
    loaders: int = 0
    """Processes per worker that read and decode images; 0: the worker does so itself."""
    save_every: int = 100
    """Steps between checkpoints; at most this many are repeated after a kill."""

    def __post_init__(self) -> None:
        if min(self.workers, self.threads, self.save_every) < 1 or self.loaders < 0:
            raise ValueError(
                f"workers {self.workers}, threads {self.threads}, save every {self.save_every}, loaders "
                f"{self.loaders}: expected at least 1, and for loaders at least 0"
            )
        if self.no_ray and self.workers > 1:
            raise ValueError(f"{self.workers} workers without Ray: this process is a single worker; drop --no-ray")


AffinityKind = Literal["heads", "features"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The settings that determine a fitted affinity, together with the run."""

    kind: AffinityKind
    """heads: one weight per attention head. features: a linear layer on what self-attention reads."""
    images: int = 300
    """Largest number of images, including those held out."""
    confidence: float = 0.0
    """Lowest confidence of a segment, 0 to 1; the pixels of other segments are ignored."""
    seed: int = 0
    """Seed of the drawn label shards and pixel pairs."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(AffinityKind):
            raise ValueError(f"kind {self.kind!r}: expected {' or '.join(get_args(AffinityKind))}")
        if self.images < 2 or not 0 <= self.confidence <= 1:
            raise ValueError(
                f"images {self.images}, confidence {self.confidence}: expected at least 2 images and a confidence from "
                "0 to 1"
            )
