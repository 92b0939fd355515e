"""Training by the recipes toco and afa: their steps, schedules and heads, and trainings from a run to its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labelled_runs import write_png, write_run
from trainings import VIT, whole_and_continued

import jobs.train
from diffseg.segmentation import BACKGROUND
from pipeline.networks.vit import ViTSegmenter
from pipeline.output.selection import RowSelection
from pipeline.training.dataset import LabelDataset
from pipeline.training.recipes import create_recipe
from pipeline.training.recipes.afa import Afa, neighbours, transitions
from pipeline.training.recipes.settings import FROM_IMAGES, IGNORE_INDEX, RecipeSettings
from pipeline.training.recipes.toco import MOMENTUM, Toco, mean_similarity
from pipeline.training.settings import TrainSettings

NAMES = ("dark", "light")
CLASS_NAMES = (BACKGROUND, *NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a read-only folder with grey images of a dark or a light square, OUT with their classes, and vit.json."""
    folder = tmp_path_factory.mktemp("weak")
    labels: dict[str, np.ndarray | None] = {}
    names: dict[str, tuple[str, ...]] = {}
    for number in range(8):
        segments = np.zeros((64, 64), np.uint16)
        segments[8 + 2 * number : 36 + 2 * number, 16:44] = 1
        colour = 10 if number % 2 == 0 else 250
        image = np.where((segments == 1)[..., None], colour, 128).astype(np.uint8).repeat(3, axis=2)
        write_png(folder / "images" / f"{number}.png", image)
        labels[f"{number}.png"], names[f"{number}.png"] = segments, (BACKGROUND, NAMES[number % 2])
    write_run(folder / "out", labels, source=folder / "images", names=names, vocabulary=NAMES)
    (folder / "vit.json").write_text(json.dumps({**VIT, "image_size": 64, "num_hidden_layers": 3}))
    return folder


def settings_of(folder: Path, recipe: Any, **changes: Any) -> TrainSettings:
    own = {"network": "vit", "backbone": str(folder / "vit.json"), "target": "classes", "size": 64, "batch_size": 4}
    return TrainSettings(**{**own, "recipe": recipe, "steps": 4, "learning_rate": 1e-3, **changes})


def batch_of(folder: Path, settings: TrainSettings) -> dict[str, Any]:
    dataset = LabelDataset(str(folder / "out"), settings.dataset(RowSelection()))
    samples = [sample for _, sample in zip(range(4), dataset, strict=False)]
    return {name: torch.stack([dict(sample)[name] for sample in samples]) for name in ("image", "mask", "present")}


def recipe_of(folder: Path, recipe: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return create_recipe(settings_of(folder, recipe, **changes), CLASS_NAMES)


def step_of(recipe: Any, batch: dict[str, Any], step: int) -> dict[str, torch.Tensor]:
    return recipe.losses(recipe.network, batch, step=step, seed=(0, step, 0), device="cpu")


def test_samples_say_which_classes_the_whole_image_shows(folder: Path) -> None:
    settings = settings_of(folder, "toco")
    for sample in LabelDataset(str(folder / "out"), settings.dataset(RowSelection())):
        number = int(sample["key"].removesuffix(".png"))
        assert sample["present"].tolist() == [number % 2 == 0, number % 2 == 1]
    assert "present" not in next(iter(LabelDataset(str(folder / "out"), TrainSettings().dataset(RowSelection()))))


def test_the_loss_of_toco_is_the_weighted_sum_of_its_parts(folder: Path) -> None:
    """The segmentation starts after a tenth of the steps; every weight has a gradient before as well."""
    recipe = recipe_of(folder, "toco", steps=100)
    batch = batch_of(folder, recipe.settings)
    for step, weight in ((0, 0.0), (9, 0.0), (10, 0.1)):
        losses = step_of(recipe, batch, step)
        expected = losses["classes"] + losses["auxiliary"] + 0.2 * losses["ptc"] + 0.5 * losses["ctc"]
        assert losses["loss"].item() == pytest.approx((expected + weight * losses["segmentation"]).item(), rel=1e-6)
        assert 0 <= losses["ptc"] <= 1
        assert 0 <= losses["similarity"] <= 1
        assert all(value.isfinite() for value in losses.values())
    step_of(recipe, batch, 0)["loss"].backward()
    learned = {name: weight.grad is not None for name, weight in recipe.network.named_parameters()}
    assert {name for name, has_gradient in learned.items() if not has_gradient} == {
        name for name in learned if name.startswith("teacher.")
    }


def test_the_loss_of_afa_learns_pixels_after_a_tenth_of_the_steps(folder: Path) -> None:
    recipe = recipe_of(folder, "afa", steps=100)
    batch = batch_of(folder, recipe.settings)
    for step, weight in ((9, 0.0), (10, 0.1), (30, 0.1)):
        losses = step_of(recipe, batch, step)
        expected = losses["classes"] + weight * (losses["segmentation"] + losses["affinity"])
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
        assert 0 <= losses["affinity"] <= 1


def test_afa_spreads_classes_within_its_radius_by_squared_affinity() -> None:
    near = neighbours(12, torch.device("cpu"))
    assert near.shape == (144, 144)
    assert near[0, 8 * 12 + 8]
    assert not near[0, 9]
    assert not near[0, 9 * 12]
    affinity = torch.rand(2, 144, 144, generator=torch.Generator().manual_seed(0))
    steps = transitions(affinity)
    assert (steps[:, ~near] == 0).all()
    column = (affinity[1, :, 5] * near[:, 5]).square()
    assert torch.allclose(steps[1, :, 5], column / (column.sum() + 0.1))


def test_the_teacher_is_the_average_of_the_student(folder: Path) -> None:
    recipe = recipe_of(folder, "toco")
    before = recipe.network.teacher.last.weight.clone()
    assert torch.equal(before, recipe.network.student.last.weight)
    with torch.no_grad():
        recipe.network.student.last.weight += 1.0
    step_of(recipe, batch_of(folder, recipe.settings), 1)
    moved = recipe.network.teacher.last.weight
    assert torch.allclose(moved, before + (1 - MOMENTUM), atol=1e-6)


def test_heads_learn_ten_times_as_fast_on_the_schedules_of_the_papers(folder: Path) -> None:
    for name, power in (("toco", 0.9), ("afa", 1.0)):
        recipe = recipe_of(folder, name)
        encoder, heads = recipe.optimiser().param_groups
        assert (encoder.get("factor", 1.0), heads["factor"]) == (1.0, 10.0)
        assert len(encoder["params"]) + len(heads["params"]) == len(list(recipe.network.parameters()))
        assert {id(weight) for weight in encoder["params"]} == set(map(id, recipe.trained().encoder.parameters()))
        assert recipe.learning_rate(0.0375) == pytest.approx(0.5)
        assert recipe.learning_rate(0.5) == pytest.approx(0.5**power)
        assert recipe.learning_rate(1.0) == 0


def test_crops_and_targets_of_toco_lie_where_the_label_map_of_the_sample_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grey of an image says the class of a pixel, also in samples that the dataset has mirrored."""
    monkeypatch.setattr("pipeline.training.recipes.crops.JITTER", 0.0)
    recipe = recipe_of(folder, "toco", pixel_targets="labels")
    batch = batch_of(folder, recipe.settings)
    batch["mask"][:, :8] = IGNORE_INDEX
    classes = batch["mask"].clone()
    batch["image"] = (classes.clamp_min(0) * 100)[:, None].expand(-1, 3, -1, -1).to(torch.uint8)
    seen: dict[str, torch.Tensor] = {}

    def spy(images: torch.Tensor, view: torch.Tensor, crops: torch.Tensor) -> Any:
        seen.update(images=images, view=view, crops=crops)
        return recipe.network(images, view, crops)

    recipe.losses(spy, batch, step=1, seed=(0, 1, 0), device="cpu")
    assert torch.allclose(seen["view"], seen["images"], atol=1e-6)
    centres = seen["crops"][:, 0, 8, 8]
    assert torch.allclose(centres, torch.full_like(centres, -1)), "crops are centred where there is no object"
    objects = (seen["crops"][:, 0] > -0.9).float().mean(dim=(1, 2))
    assert objects.max() > 0.1, "and reach into objects"


@pytest.mark.parametrize("targets", ["cam", "labels"])
@pytest.mark.parametrize("name", FROM_IMAGES)
def test_an_interrupted_training_ends_with_the_same_bytes(
    name: str, targets: str, folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(folder, name, pixel_targets=targets)
    whole, continued = whole_and_continued(folder / "out", settings, tmp_path, interrupted_after=3)
    assert whole.read_bytes("model.safetensors") == continued.read_bytes("model.safetensors")
    config = json.loads(continued.read_bytes("config.json"))
    assert (config["network"], config["class_names"]) == ("vit", list(CLASS_NAMES))


@pytest.mark.parametrize("recipe", ["plain", "toco"])
def test_a_trained_network_labels_with_the_classes_of_the_run(recipe: str, folder: Path, tmp_path: Path) -> None:
    words = [str(folder / "out"), str(tmp_path), "--no-ray", "--recipe", recipe, "--target", "classes", "--size", "64"]
    words += ["--network", "vit", "--backbone", str(folder / "vit.json"), "--batch-size", "8", "--steps", "12"]
    assert jobs.train.main([*words, "--learning-rate", "2e-3", "--predict", str(folder / "images")]) == 0
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    part = "loss" if recipe == "plain" else "classes"
    assert history[-1][part] < history[0][part]
    rows = [row for path in (tmp_path / "labels" / "labels").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 8
    found = {(segment["class_id"], segment["name"]) for row in rows for segment in row["segments"]}
    assert found <= set(enumerate(CLASS_NAMES))


def test_patch_token_contrast_makes_tokens_of_different_classes_less_alike(folder: Path) -> None:
    """The same training with and without it, on label maps, with a weight that shows after few steps."""
    contrast = {}
    for weight in (0.0, 20.0):
        recipe = recipe_of(folder, "toco", pixel_targets="labels", ptc_weight=weight, ctc_weight=0.0, steps=40)
        optimiser, batch = recipe.optimiser(), batch_of(folder, recipe.settings)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * group.get("factor", 1.0)
        for step in range(15):
            losses = step_of(recipe, batch, step)
            optimiser.zero_grad()
            losses["loss"].backward()
            optimiser.step()
        contrast[weight] = losses["ptc"].item()
    assert contrast[20.0] < 0.7 * contrast[0.0], contrast


def test_the_mean_similarity_of_tokens_is_that_of_different_pairs() -> None:
    tokens = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]]).T.reshape(1, 2, 1, 3)
    assert mean_similarity(tokens).item() == pytest.approx(2 / 6)


def test_settings_that_do_not_fit_a_recipe_are_refused() -> None:
    fits: dict[str, Any] = {"target": "classes", "network": "vit"}
    for recipe in (Toco, Afa):
        with pytest.raises(ValueError, match="names no class but the background"):
            recipe(RecipeSettings(**fits, recipe="toco" if recipe is Toco else "afa"), (BACKGROUND,))
    for changes, message in (
        ({"recipe": "toco"}, "add --target classes --network vit"),
        ({"recipe": "afa", "target": "classes"}, "add --target classes --network vit"),
        ({"pixel_targets": "labels"}, "are of the recipes afa and toco"),
        ({**fits, "recipe": "afa", "ptc_weight": 0.1}, "are of the recipe toco"),
        ({**fits, "recipe": "toco", "ctc_weight": -1.0}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            RecipeSettings(**changes)
    added = {"recipe", "pixel_targets", "ptc_weight", "ctc_weight"}
    assert not added & TrainSettings().plain().keys(), "which train.json of earlier versions lacks"
    assert isinstance(create_recipe(RecipeSettings(**fits, size=32), CLASS_NAMES).trained(), ViTSegmenter)


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_the_mean_loss_of_two_workers_is_that_of_one_with_all_images(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops, colours and sampled tokens follow from an image's place in the whole batch."""
    recipe = recipe_of(folder, name, steps=100)
    batch = batch_of(folder, recipe.settings)

    @torch.no_grad()
    def loss(part: slice, rank: int) -> float:
        own = {key: value[part] for key, value in batch.items()}
        return recipe.losses(recipe.network, own, step=0, seed=(0, 0, rank), device="cpu")["loss"].item()

    whole = loss(slice(None), 0)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda own: None)
    losses = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        losses.append(loss(slice(2 * rank, 2 * rank + 2), rank))
    assert sum(losses) / 2 == pytest.approx(whole, abs=1e-5)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_distributed_training_waits_for_no_gradient_that_never_comes(name: str, folder: Path, tmp_path: Path) -> None:
    """A second step raises an error if a weight had no gradient in the first one, before the pixels are learned."""
    recipe = recipe_of(folder, name, steps=100)
    batch = batch_of(folder, recipe.settings)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(recipe.network)
        for step in range(2):
            losses = recipe.losses(wrapped, batch, step=step, seed=(0, step, 0), device="cpu")
            losses["loss"].backward()
    finally:
        torch.distributed.destroy_process_group()
    assert losses["loss"].isfinite()
