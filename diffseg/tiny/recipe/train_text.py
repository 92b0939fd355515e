"""Train the embedded text model on the CPU: `python -m diffseg.tiny.recipe.train_text`.

The training starts from the weights of the text-free model and keeps its autoencoder. It can be killed and resumed: the
random numbers of a step depend only on seed, training and step, as in `diffseg.tiny.recipe.train`. With one thread, the
training takes about an hour and a quarter.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from transformers import CLIPTextModel

from diffseg.optim import descend, set_lr
from diffseg.tiny.recipe.denoiser import draw_inputs, pass_losses, update_average, weight_by_signal
from diffseg.tiny.recipe.export import CHECKPOINT, export_checkpoint
from diffseg.tiny.recipe.latents import LatentBatch, LatentPool
from diffseg.tiny.recipe.model import build_networks
from diffseg.tiny.recipe.objective import RowRecorder, class_targets, naming_loss
from diffseg.tiny.recipe.settings import TrainingStage, stage_at
from diffseg.tiny.recipe.text_model import build_text_encoder, build_text_unet, build_tokenizer
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT, TextRecipe, training_caption
from diffseg.tiny.recipe.tokenizer import WordTokenizer, caption_tokenizer
from diffseg.tiny.recipe.train import record_recipe
from diffseg.tiny.recipe.training_state import ProgressLog, load_state, save_state
from diffseg.tiny.scenes.captioned import generate_captioned, visible_classes
from diffseg.tiny.scenes.scenes import Scene, generate_scene
from diffseg.tiny.scenes.vocabulary import NOUNS, Caption

__all__ = ["TrainTextCommand", "main", "train_text"]

log = logging.getLogger(__name__)

TAU = (0.4, 0.4, 0.4)
"""Merging thresholds of the exported model, until `diffseg.tiny.recipe.tune` replaces them by better ones."""
TRAINED_ON = (
    "procedurally generated images and captions of a closed vocabulary only (diffseg.tiny.scenes.captioned); "
    "no photograph, no human label; naming was supervised by the generated masks, so the names of segments in "
    "photographs, and all names outside the vocabulary, are arbitrary"
)

CARD = """# tiny-text

A Stable Diffusion of 4.6 million parameters that understands captions with 18 nouns: {nouns}.

This model is a demonstration. It was trained only on generated images and on captions of this closed vocabulary, and
its naming was supervised by the generated masks. Photographs have no such masks. The names that it gives to segments of
photographs are arbitrary, and so are its results for any other word. They say nothing about how Stable Diffusion names
segments. Use a published Stable Diffusion to make useful labels.

The folder has the layout of StableDiffusionPipeline in diffusers: UNet, AutoencoderTiny, CLIPTextModel and
CLIPTokenizer, with weights in half precision. Each word of the vocabulary is one token, and all other words are split
into shorter tokens, down to bytes. The model was trained from the weights of `tiny` in {steps} steps on one CPU core.
Its recipe is in `diffseg.json`; `make tiny-text-train` trains such a model anew, and `make tiny-eval` measures it.
It also generates images from captions, best with 25 steps and a guidance of 3;
`python -m diffseg.tiny.evaluation.generation` measures them.
"""


def train_text(recipe: TextRecipe, start: Path, out: Path, *, save_every: int = 100) -> nn.ModuleDict:
    """Train the text model, from its last checkpoint if there is one.

    Args:
        recipe: Settings; they must equal those with which the training in `out` was started.
        start: Folder of the text-free checkpoint.
        out: Folder of all checkpoints and encoded scenes. The process may be killed at any time.
        save_every: Steps between checkpoints; they do not change the result.

    Returns:
        The networks "unet" and "text" with their averaged weights.

    Raises:
        ValueError: The training in `out` was started with another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    record_recipe(recipe, out / "recipe.json")
    vae, words, networks = _build(recipe, start)
    pools = _prepare_pools(recipe, vae, out)
    alphas = build_networks(recipe.seed)[2].alphas_cumprod
    optimiser = _optimiser(networks, recipe.text_factor)
    average = {name: value.clone() for name, value in networks.state_dict().items()}
    done = load_state(out / "text.pt", networks=networks, optimiser=optimiser, average=average)
    recorder = RowRecorder().attach(networks["unet"])
    networks.train()
    progress, previous = ProgressLog("text", recipe.steps), None
    for step in range(done, recipe.steps):
        stage, step_of_stage = stage_at(recipe.stages, step)
        if stage is not previous:
            progress, previous = ProgressLog("text", recipe.steps), stage
        rng = np.random.default_rng([recipe.seed, 2, step])
        set_lr(optimiser, stage.learning_rate(step_of_stage))
        batch = _draw_batch(recipe, stage, pools, rng)
        denoise, attend, name = _losses(stage, networks, recorder, words, batch, alphas, rng)
        descend(denoise + recipe.attention_weight * attend + recipe.naming_weight * name, networks, optimiser)
        update_average(average, networks, min(recipe.average, (1 + step_of_stage) / (10 + step_of_stage)))
        progress.add(step, denoise=denoise.item(), attend=attend.item(), name=name.item())
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            save_state(out / "text.pt", step + 1, networks=networks, optimiser=optimiser, average=average)
    networks.load_state_dict(average)
    unet: Any = networks["unet"]
    unet.set_attn_processor(AttnProcessor2_0())
    return networks.eval()


def _build(recipe: TextRecipe, start: Path) -> tuple[AutoencoderTiny, WordTokenizer, nn.ModuleDict]:
    """Return the autoencoder, which is not trained, the tokenizer, and the networks to train, "unet" and "text"."""
    vae = AutoencoderTiny.from_pretrained(start / "vae", use_safetensors=True).float().eval()
    unet = UNet2DConditionModel.from_pretrained(start / "unet", use_safetensors=True).float()
    words = caption_tokenizer()
    text = build_text_encoder(words, recipe.seed)
    return vae, words, nn.ModuleDict({"unet": build_text_unet(unet, recipe.seed), "text": text})


def _optimiser(networks: nn.ModuleDict, text_factor: float) -> torch.optim.Optimizer:
    """Return an optimiser as `diffseg.optim.optimiser_of` does, whose learning rate for new weights is scaled."""
    new: list[Tensor] = []
    old: list[Tensor] = []
    for name, parameter in networks.named_parameters():
        (new if name.startswith("text.") or ".attn2." in name else old).append(parameter)
    groups: list[dict[str, Any]] = [{"params": old}, {"params": new, "factor": text_factor}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def _prepare_pools(recipe: TextRecipe, vae: AutoencoderTiny, out: Path) -> tuple[LatentPool, LatentPool]:
    """Return captioned scenes, whose labels are classes, and scenes without captions, both at the VAE's scale."""

    def scene_with_classes(seed: int) -> Scene:
        scene = generate_captioned(seed, recipe.size)
        return Scene(scene.image, scene.classes)

    scale = vae.config.scaling_factor
    captioned = LatentPool.prepare(out / "captioned", vae, scene_with_classes, count=recipe.captioned, scale=scale)
    scenes = LatentPool.prepare(
        out / "scenes", vae, lambda seed: generate_scene(seed, recipe.size), count=recipe.scenes, scale=scale
    )
    return captioned, scenes


def _draw_batch(
    recipe: TextRecipe, stage: TrainingStage, pools: tuple[LatentPool, LatentPool], rng: np.random.Generator
) -> LatentBatch:
    """Draw a batch in which the captioned samples come first and those without a caption follow."""
    side, text_free = round(recipe.size // 8 * stage.crop), stage.text_free_count
    counts = (stage.batch - text_free, text_free)
    parts = [pool.draw_batch(rng, count, side) for pool, count in zip(pools, counts, strict=True) if count]
    return LatentBatch(torch.cat([part.latents for part in parts]), torch.cat([part.labels for part in parts]))


def _losses(
    stage: TrainingStage,
    networks: nn.ModuleDict,
    recorder: RowRecorder,
    words: WordTokenizer,
    batch: LatentBatch,
    alphas: Tensor,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the denoising, attention and naming losses of one batch, all scalar.

    The naming loss is that of the captioned samples alone, which come first in the batch.
    """
    side, captioned = batch.latents.shape[-1], stage.batch - stage.text_free_count
    inputs = draw_inputs(stage, batch, alphas, rng)
    clean = (inputs.noisy[:captioned] == 0).tolist()
    visible = [visible_classes(classes) for classes in batch.labels[:captioned].numpy()]
    captions = [
        training_caption(rng, classes, clean=is_clean) for classes, is_clean in zip(visible, clean, strict=True)
    ]
    captions += [Caption()] * (stage.batch - captioned)
    ids, token_classes = (torch.from_numpy(np.stack(part)) for part in zip(*map(words.encode, captions), strict=True))
    context = networks["text"](ids).last_hidden_state
    denoise, attend = pass_losses(networks["unet"], recorder, batch, inputs, context)
    named = torch.zeros(captioned, len(NOUNS), dtype=torch.bool)
    for row, caption in zip(named, captions, strict=False):
        row[list(caption.classes)] = True
    target = class_targets(batch.labels[:captioned], named, inputs.queries[:captioned], side)
    name = naming_loss(recorder, token_classes[:captioned], target)
    return denoise, attend, weight_by_signal(name, inputs.alpha[:captioned])


def start_from(weights: Path, recipe: TextRecipe, start: Path, out: Path) -> None:
    """Write the state of a training that has reached the step of a text checkpoint, unless `out` has a state.

    The weights of the checkpoint are in half precision. It does not hold the optimiser's moments, which start at 0.

    Args:
        weights: Diffusers folder of a text checkpoint, whose diffseg.json states its step.
        recipe: Settings whose earlier stages are those of the checkpoint.
        start: Folder of the text-free checkpoint.
        out: Folder of the training.
    """
    if (out / "text.pt").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    _, _, networks = _build(recipe, start)
    unet = UNet2DConditionModel.from_pretrained(weights / "unet", use_safetensors=True).float()
    networks["unet"].load_state_dict(unet.state_dict())
    text = CLIPTextModel.from_pretrained(weights / "text_encoder", use_safetensors=True).float()
    networks["text"].load_state_dict(text.state_dict())
    step = json.loads((weights / "diffseg.json").read_text())["recipe"]["steps_done"]
    optimiser = _optimiser(networks, recipe.text_factor)
    save_state(out / "text.pt", step, networks=networks, optimiser=optimiser, average=networks.state_dict())


def export_state(recipe: TextRecipe, start: Path, out: Path, folder: Path) -> None:
    """Write the diffusers folder from the last checkpoint in `out`, even if the training is unfinished."""
    vae, words, networks = _build(recipe, start)
    average: dict[str, Tensor] = {}
    steps = load_state(out / "text.pt", average=average)
    if average:
        networks.load_state_dict(average)
    export_checkpoint(
        vae,
        networks["unet"],
        build_networks(recipe.seed)[2],
        folder,
        recipe={**dataclasses.asdict(recipe), "steps_done": steps},
        tau=TAU,
        trained_on=TRAINED_ON,
        text=(networks["text"], build_tokenizer(words)),
    )
    (folder / "README.md").write_text(CARD.format(nouns=", ".join(NOUNS), steps=steps))
    log.info("wrote %s", folder)


@dataclass(frozen=True, kw_only=True)
class TrainTextCommand:
    """Train the embedded text model, from the last checkpoint in --out if there is one, and export it.

    Attributes:
        start: Folder of the text-free checkpoint that the training starts from.
        out: Working folder, with all checkpoints and encoded scenes.
        checkpoint: Diffusers folder to write.
        weights: Text checkpoint to continue from at the step that its diffseg.json states, if --out has no state.
        export: Only export the last checkpoint in --out, even if the training is unfinished.
        save_every: Steps between checkpoints; they do not change the result.
        recipe: Settings that determine the weights.
    """

    start: Path = CHECKPOINT
    out: Path = Path("tiny-text-training")
    checkpoint: Path = TEXT_CHECKPOINT
    weights: Path | None = None
    export: bool = False
    save_every: int = 100
    recipe: TextRecipe = field(default_factory=TextRecipe)


def main(command: TrainTextCommand) -> None:
    """Train and export, or only export."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)  # sums, and therefore the weights, depend on the number of threads
    if command.weights is not None:
        start_from(command.weights, command.recipe, command.start, command.out)
    if not command.export:
        train_text(command.recipe, command.start, command.out, save_every=command.save_every)
    export_state(command.recipe, command.start, command.out, command.checkpoint)


if __name__ == "__main__":
    main(tyro.cli(TrainTextCommand))
