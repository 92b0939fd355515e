"""What determines the rows of a run that generates its images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from diffseg.generation.settings import GenerationSettings
from diffseg.model.files import GENERATING_FILES, ModelFiles
from pipeline.settings import LabelSettings

ImageFormat = Literal["png", "webp", "jpeg"]

UNUSED = ("network", "clip", "affinity", "references", "levels", "features", "quality")
"""Settings of `diffseg label` that `diffseg generate` refuses."""


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(LabelSettings):
    """What determines the rows: the model, the sampling, the stages of the method, the vocabulary and the seed.

    The prompts are not part of them: they determine the shards, so that prompts can be added to a run.

    Attributes:
        generation: How images are sampled and label maps are made.
        seed: Seed of the run. The seed of each image follows from it and from the key of the image.
        image_format: How images are stored.
        template: The prompt for each name, which replaces the {}; "" if the prompts come from a file.
    """

    generation: GenerationSettings = field(default_factory=GenerationSettings)
    seed: int = 0
    image_format: ImageFormat = "png"
    template: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if given := [name for name in UNUSED if getattr(self, name) not in (None, False)]:
            raise ValueError(f"{', '.join(given)}: a run that generates its images has no such setting")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: expected 0 to {2**63 - 1}")

    @property
    def model_files(self) -> ModelFiles:
        """The files of the model that are fetched and digested, which include those of its noise schedule."""
        return GENERATING_FILES

    def plain(self) -> dict[str, Any]:
        """Return all settings as plain values.

        The images are in the column `image` of the label shards, where readers of the run look for those of a source.
        """
        plain = super().plain() | {"image_field": "image", "key_field": "key", "include_image": True}
        own = {name: plain.pop(name) for name in ("seed", "image_format", "template")}
        plain["generation"] = {**dataclasses.asdict(self.generation), **own}
        plain["method"] = {**plain["method"], "method": list(self.generation.method)}
        return plain
