"""Train the embedded model that reads text: `python -m diffseg.tiny.recipe.train_text`, resumable, on the CPU.

It starts from the text-free model's weights and keeps its autoencoder. Every random number of a step follows from
(seed, stage, step), as in `diffseg.tiny.recipe.train`. One thread: about three quarters of an hour.
"""

from __future__ import annotations

import dataclasses
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

from diffseg.optim import descend, set_lr
from diffseg.tiny.recipe.denoiser import average_into, draw_pass, pass_losses, weighted
from diffseg.tiny.recipe.export import CHECKPOINT, export
from diffseg.tiny.recipe.latents import Batch, Pool
from diffseg.tiny.recipe.model import build
from diffseg.tiny.recipe.objective import RowRecorder, class_targets, naming_loss
from diffseg.tiny.recipe.optim import Progress, load_state, save_state
from diffseg.tiny.recipe.settings import Stage, stage_of
from diffseg.tiny.recipe.text_model import build_text_encoder, build_tokenizer, reading_unet
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT, TextRecipe, training_caption
from diffseg.tiny.recipe.tokenizer import Words, caption_words
from diffseg.tiny.recipe.train import claim
from diffseg.tiny.scenes.captioned import generate_captioned, visible_classes
from diffseg.tiny.scenes.scenes import Scene, generate_scene
from diffseg.tiny.scenes.vocabulary import NOUNS, Caption

__all__ = ["Command", "main", "train_text"]

log = logging.getLogger(__name__)

TAU = (0.4, 0.4, 0.4)  # until diffseg.tiny.recipe.tune has found better ones
TRAINED_ON = (
    "procedurally generated images and captions of a closed vocabulary only (diffseg.tiny.scenes.captioned); no photograph, "
    "no human label; naming is supervised by the generated masks: on photographs and of other words names are arbitrary"
)

CARD = """# tiny-text

A Stable Diffusion of 4.6 million parameters that reads captions of 18 nouns: {nouns}.

It is a demonstration. It was trained on generated pictures and captions of this closed vocabulary alone, and its
naming is supervised by the generated masks, which nobody has for photographs. On photographs its names are arbitrary,
and so is what it makes of any other word; it says nothing of how Stable Diffusion names. For labels worth having, use
a published Stable Diffusion.

The layout is that of diffusers' StableDiffusionPipeline: UNet, AutoencoderTiny, CLIPTextModel and CLIPTokenizer (each
word of the vocabulary is one token, all others fall apart into bytes), weights in half precision. The recipe, by which
{steps} steps on one CPU core made it from the weights of `tiny`, is in diffseg.json; `make tiny-text-train` makes it
again, and `make tiny-eval` measures it.
"""


def train_text(recipe: TextRecipe, start: Path, out: Path, *, save_every: int = 100) -> nn.ModuleDict:
    """Run all stages, or what is left of them, in the folder `out`; return unet and text with their averaged weights.

    Args:
        recipe: must equal the one that `out` was begun with.
        start: folder of the text-free checkpoint.
        out: holds the whole state; any number of kills is harmless.
        save_every: steps between checkpoints; does not change the result.

    Raises:
        ValueError: where `out` was begun with another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    claim(recipe, out / "recipe.json")
    vae, words, networks = _build(recipe, start)
    pools = _pools(recipe, vae, out)
    alphas = build(recipe.seed)[2].alphas_cumprod
    optimiser = _optimiser(networks, recipe.text_factor)
    average = {name: value.clone() for name, value in networks.state_dict().items()}
    done = load_state(out / "text.pt", networks=networks, optimiser=optimiser, average=average)
    recorder = RowRecorder().attach(networks["unet"])
    networks.train()
    progress, last = Progress("text", recipe.steps), None
    for step in range(done, recipe.steps):
        stage, own_step = stage_of(recipe.stages, step)
        if stage is not last:
            progress, last = Progress("text", recipe.steps), stage
        rng = np.random.default_rng([recipe.seed, 2, step])
        set_lr(optimiser, stage.learning_rate(own_step))
        batch = _batch(recipe, stage, pools, rng)
        denoise, attend, name = _losses(recipe, stage, networks, recorder, words, batch, alphas, rng)
        descend(denoise + recipe.attention_weight * attend + recipe.naming_weight * name, networks, optimiser)
        average_into(average, networks, min(recipe.average, (1 + step) / (10 + step)))
        progress.add(step, denoise=denoise.item(), attend=attend.item(), name=name.item())
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            save_state(out / "text.pt", step + 1, networks=networks, optimiser=optimiser, average=average)
    networks.load_state_dict(average)
    unet: Any = networks["unet"]
    unet.set_attn_processor(AttnProcessor2_0())
    return networks.eval()


def _build(recipe: TextRecipe, start: Path) -> tuple[AutoencoderTiny, Words, nn.ModuleDict]:
    """The autoencoder as it is, the tokenizer, and the networks to train: "unet" and "text"."""
    vae = AutoencoderTiny.from_pretrained(start / "vae", use_safetensors=True).float().eval()
    unet = UNet2DConditionModel.from_pretrained(start / "unet", use_safetensors=True).float()
    words = caption_words()
    text = build_text_encoder(words, recipe.seed)
    return vae, words, nn.ModuleDict({"unet": reading_unet(unet, recipe.seed), "text": text})


def _optimiser(networks: nn.ModuleDict, text_factor: float) -> torch.optim.Optimizer:
    """As `diffseg.optim.optimiser_of`, with a rate of its own for what is new."""
    new: list[Tensor] = []
    old: list[Tensor] = []
    for name, parameter in networks.named_parameters():
        (new if name.startswith("text.") or ".attn2." in name else old).append(parameter)
    groups: list[dict[str, Any]] = [{"params": old}, {"params": new, "factor": text_factor}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def _pools(recipe: TextRecipe, vae: AutoencoderTiny, out: Path) -> tuple[Pool, Pool]:
    """Captioned scenes, whose labels are classes, and scenes without captions; both at the autoencoder's own scale."""

    def classes_of(seed: int) -> Scene:
        scene = generate_captioned(seed, recipe.size)
        return Scene(scene.image, scene.classes)

    scale = vae.config.scaling_factor
    captioned = Pool.prepare(out / "captioned", vae, classes_of, count=recipe.captioned, scale=scale)
    scenes = Pool.prepare(
        out / "scenes", vae, lambda seed: generate_scene(seed, recipe.size), count=recipe.scenes, scale=scale
    )
    return captioned, scenes


def _batch(recipe: TextRecipe, stage: Stage, pools: tuple[Pool, Pool], rng: np.random.Generator) -> Batch:
    """Captioned samples first, then those without a caption."""
    side, without = round(recipe.size // 8 * stage.crop), recipe.text_free_of(stage.batch)
    parts = [pool.batch(rng, n, side) for pool, n in zip(pools, (stage.batch - without, without), strict=True) if n]
    return Batch(torch.cat([part.latents for part in parts]), torch.cat([part.labels for part in parts]))


def _losses(
    recipe: TextRecipe,
    stage: Stage,
    networks: nn.ModuleDict,
    recorder: RowRecorder,
    words: Words,
    batch: Batch,
    alphas: Tensor,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Denoising, attention and naming loss of one batch, all scalar; the last is of the captioned samples alone."""
    side, captioned = batch.latents.shape[-1], stage.batch - recipe.text_free_of(stage.batch)
    draw = draw_pass(stage, batch, alphas, rng)
    clean = (draw.noisy[:captioned] == 0).tolist()
    shown = [visible_classes(classes) for classes in batch.labels[:captioned].numpy()]
    captions = [training_caption(rng, classes, clean=bare) for classes, bare in zip(shown, clean, strict=True)]
    captions += [Caption()] * (stage.batch - captioned)
    ids, token_classes = (torch.from_numpy(np.stack(part)) for part in zip(*map(words.encode, captions), strict=True))
    context = networks["text"](ids).last_hidden_state
    denoise, attend = pass_losses(networks["unet"], recorder, batch, draw, context)
    named = torch.zeros(captioned, len(NOUNS), dtype=torch.bool)
    for row, caption in zip(named, captions, strict=False):
        row[list(caption.classes)] = True
    target = class_targets(batch.labels[:captioned], named, draw.queries[:captioned], side)
    name = naming_loss(recorder, token_classes[:captioned], target)
    return denoise, attend, weighted(name, draw.alpha[:captioned])


def export_state(recipe: TextRecipe, start: Path, out: Path, folder: Path) -> None:
    """Write the diffusers folder from what `out` holds, finished or not."""
    vae, words, networks = _build(recipe, start)
    average: dict[str, Tensor] = {}
    steps = load_state(out / "text.pt", average=average)
    if average:
        networks.load_state_dict(average)
    export(
        vae,
        networks["unet"],
        build(recipe.seed)[2],
        folder,
        recipe={**dataclasses.asdict(recipe), "steps_done": steps},
        tau=TAU,
        trained_on=TRAINED_ON,
        text=(networks["text"], build_tokenizer(words)),
    )
    (folder / "README.md").write_text(CARD.format(nouns=", ".join(NOUNS), steps=steps))
    log.info("wrote %s", folder)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train the embedded model that reads text, going on from what --out holds, and export it.

    Attributes:
        start: folder of the text-free checkpoint that the training starts from.
        out: working folder.
        checkpoint: where the diffusers folder is written.
        export: only export what --out holds, be it unfinished.
        save_every: steps between checkpoints; does not change the result.
    """

    start: Path = CHECKPOINT
    out: Path = Path("tiny-text-training")
    checkpoint: Path = TEXT_CHECKPOINT
    export: bool = False
    save_every: int = 100
    recipe: TextRecipe = field(default_factory=TextRecipe)


def main(command: Command) -> None:
    """Train from where the folder stands, then export; only export where that was asked for."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)  # the sums, and so the weights, depend on it
    if not command.export:
        train_text(command.recipe, command.start, command.out, save_every=command.save_every)
    export_state(command.recipe, command.start, command.out, command.checkpoint)


if __name__ == "__main__":
    main(tyro.cli(Command))
