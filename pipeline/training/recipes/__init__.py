"""Recipes: the ways to train a network on a run, one file each. `pipeline.training.loop` runs any of them.

A recipe answers what differs between them: the network and the heads that only its losses need, the loss of a step, the
optimiser and its learning rate, and what is saved. The loop does the rest: batches, checkpoints, records, the files in
MODEL.

To add a recipe:

1. Derive from `pipeline.training.recipes.base.Recipe` in a new file, and add it to `create_recipe`.
2. Add its name and its settings to `pipeline.training.recipes.settings`, which refuses settings that do not fit it.
   Settings with their defaults are left out of `TrainSettings.plain`, so that trainings that began before these
   settings existed continue.
3. If it needs more of a sample than image and mask, say so in `TrainSettings.dataset`.

A network that labels is built by `pipeline.networks`; a recipe adds only layers that are dropped after the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.training.recipes.base import Recipe
    from pipeline.training.recipes.settings import RecipeSettings


def create_recipe(settings: RecipeSettings, class_names: Sequence[str]) -> Recipe:
    """Return the recipe of the settings with its network, whose weights are drawn from torch's generator.

    Args:
        settings: The settings of the training.
        class_names: Name of each class of the run, the background first; empty for a run without names.

    Raises:
        ValueError: The settings do not fit the recipe or its network; the message says what to change.
    """
    if settings.recipe == "denseclip":
        from pipeline.training.recipes.denseclip import DenseClipRecipe

        return DenseClipRecipe(settings, class_names)
    if settings.recipe == "maskclip":
        from pipeline.training.recipes.maskclip import MaskClipRecipe

        return MaskClipRecipe(settings, class_names)
    if settings.recipe == "afa":
        from pipeline.training.recipes.afa import Afa

        return Afa(settings, class_names)
    if settings.recipe == "toco":
        from pipeline.training.recipes.toco import Toco

        return Toco(settings, class_names)
    from pipeline.training.recipes.plain import Plain

    return Plain(settings, class_names)
