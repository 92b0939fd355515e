"""The settings that decide the embedded model's weights."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        seed: of weights, crops and noise; scenes have their own seeds, counted from 0.
        size: side of the scenes in pixels.
        scenes: size of the pool.
        vae_scenes, vae_steps, vae_batch, vae_lr: autoencoder, on half-size crops of the pool's first scenes.
        crop_steps, crop_batch, crop_lr: UNet on quarter-area crops; learning rate at the start and at the end.
        whole_steps, whole_batch, whole_lr: UNet on whole latents, in two runs; in each, from its learning rate to 0.
        warmup: steps of linear warm-up.
        queries: sampled attention rows per image (crops, whole).
        attention_weight: of the attention loss beside the denoising loss.
        clean_share: share of samples without noise, which is how DiffSeg presents an image.
        average: decay of the running average of the weights, which is what is exported.
    """

    seed: int = 0
    size: int = 256
    scenes: int = 4000
    vae_scenes: int = 160
    vae_steps: int = 350
    vae_batch: int = 8
    vae_lr: float = 2e-3
    crop_steps: int = 1500
    crop_batch: int = 12
    crop_lr: tuple[float, float] = (1.5e-3, 6e-4)
    whole_steps: tuple[int, int] = (800, 450)
    whole_batch: int = 6
    whole_lr: tuple[float, float] = (9e-4, 6e-4)
    warmup: int = 200
    queries: tuple[int, int] = (48, 64)
    attention_weight: float = 0.5
    clean_share: float = 0.5
    average: float = 0.998

    @property
    def unet_steps(self) -> int:
        return self.crop_steps + sum(self.whole_steps)

    def __post_init__(self) -> None:
        if self.size % 128:
            raise ValueError(
                f"size must be a multiple of 128, so that a crop of latents can be halved three times; got {self.size}"
            )
        if not 0 <= self.clean_share < 1:
            raise ValueError(f"clean_share must lie in [0, 1), got {self.clean_share}")
