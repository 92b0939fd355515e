"""Settings of `diffseg filter`, one dataclass per component. The command line is made from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.training.recipes.settings import NetworkName, Target
from pipeline.training.settings import TrainSettings

Score = Literal["cv_iou", "confidence", "both", "agree_iou"]


@dataclass(frozen=True, kw_only=True)
class FoldSettings:
    """The networks of the cross-validation. They determine `cv_iou`, together with the labels."""

    folds: int = 5
    """Number of parts that the rows are divided into, by their keys. For each part a network is trained on all others,
    and predicts the rows of the part."""
    network: NetworkName = "unet"
    """Network of each fold, as for `diffseg train`."""
    backbone: str | None = None
    """What segformer, dinov2-linear and vit start from, as for `diffseg train`."""
    steps: int = 400
    """Steps of each training."""
    batch_size: int = 8
    """Images per step."""
    size: int = 128
    """Side of the square crops in pixels, a multiple of 32."""
    learning_rate: float = 3e-3
    """Highest learning rate."""
    width: int = 24
    """Channels of unet's finest level, a multiple of 8."""
    seed: int = 0
    """Seed of weights, orders and crops."""

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= 100:
            raise ValueError(f"folds {self.folds}: expected 2 to 100")
        self.train_settings("segments")

    def train_settings(self, target: Target) -> TrainSettings:
        """Return the settings of the training of each fold. Raises ValueError if they are not valid."""
        plain = {name: value for name, value in asdict(self).items() if name != "folds"}
        return TrainSettings(target=target, **plain)

    def plain(self, target: Target) -> dict[str, Any]:
        """Return everything that determines the scores besides the labels."""
        return {"folds": self.folds, **self.train_settings(target).plain()}

    def fold_of(self, split: float) -> int:
        """Return the fold of a row, from 0.

        Args:
            split: `pipeline.output.selection.split_of` of its key.
        """
        return sum(split >= fold / self.folds for fold in range(1, self.folds))

    def other_folds(self, fold: int) -> str:
        """Return the expression for `--where` that selects the rows of all other folds."""
        return f"split < {fold / self.folds!r} or split >= {(fold + 1) / self.folds!r}"


@dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Which rows are kept, by their scores."""

    keep: float = 0.7
    """Share of the rows of each class that is kept, the best ones by --by. DiffuMask's θ is 1 minus this share."""
    by: Score = "cv_iou"
    """Score by which rows are ranked within their class. both: the mean of the ranks by cv_iou and by confidence.
    agree_iou: for runs of `diffseg generate`."""
    min_cv_iou: float = 0.0
    """Drop rows with a lower cv_iou, 0 to 1."""
    min_confidence: float = 0.0
    """Drop rows with a lower confidence, 0 to 1."""
    min_agree_iou: float = 0.0
    """Drop rows with a lower agree_iou, 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("keep", "min_cv_iou", "min_confidence", "min_agree_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 to 1")
