"""Run google/diffseg's own model and method on given weights: the half of `reference_pass.py` that needs TensorFlow.

The weights have diffusers' names. They are put into the layers of the checkout and of keras-cv in the order in which
both create them. Nothing is downloaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

THRESHOLDS_FILE, CONTEXT_FILE = "tau.npy", "context.npy"

Weights = dict[str, np.ndarray]


def numbered(model: Any, kind: str) -> list[Any]:
    """Return the layers of a Keras model of one class in the order of their creation, which their names count."""
    layers = [layer for layer in model.layers if type(layer).__name__ == kind]
    return sorted(layers, key=lambda layer: int("".join(re.findall(r"\d+$", layer.name)) or 0))


class Loader:
    """Assigns weights of diffusers to Keras layers, and counts those that are left."""

    def __init__(self, weights: Weights) -> None:
        self.left = dict(weights)

    def dense(self, layer: Any, name: str) -> None:
        """Assign a linear layer, with or without bias."""
        layer.kernel.assign(self.left.pop(f"{name}.weight").T)
        if layer.use_bias:
            layer.bias.assign(self.left.pop(f"{name}.bias"))

    def conv(self, layer: Any, name: str) -> None:
        """Assign a keras-cv PaddedConv2D; 1 x 1 kernels may come as matrices."""
        kernel = self.left.pop(f"{name}.weight")
        kernel = kernel if kernel.ndim == 4 else kernel[..., None, None]
        layer.conv2d.kernel.assign(kernel.transpose(2, 3, 1, 0))
        layer.conv2d.bias.assign(self.left.pop(f"{name}.bias"))

    def norm(self, layer: Any, name: str) -> None:
        """Assign a group or layer normalisation."""
        layer.gamma.assign(self.left.pop(f"{name}.weight"))
        layer.beta.assign(self.left.pop(f"{name}.bias"))

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Check that every weight was assigned."""
        left = [name for name in self.left if not name.startswith(ignored)]
        if left:
            raise SystemExit(f"{len(left)} weights have no place in the reference model, the first is {left[0]}")


def unet_names(kind: str) -> Iterator[str]:
    """Yield diffusers' names of the UNet's resnets or attentions in the order of a pass."""
    resnets = kind == "resnets"
    yield from (f"down_blocks.{level}.{kind}.{i}" for level in range(4 if resnets else 3) for i in range(2))
    yield from (f"mid_block.{kind}.{i}" for i in range(2 if resnets else 1))
    yield from (f"up_blocks.{level}.{kind}.{i}" for level in range(0 if resnets else 1, 4) for i in range(3))


def load_unet(model: Any, weights: Weights) -> list[Any]:
    """Assign all weights of a UNet, and return its spatial transformers in the order of a pass."""
    loader = Loader(weights)
    for layer, number in zip(numbered(model, "Dense"), (1, 2), strict=True):
        loader.dense(layer, f"time_embedding.linear_{number}")
    names = ["conv_in", *(f"down_blocks.{level}.downsamplers.0.conv" for level in range(3)), "conv_out"]
    for layer, name in zip(numbered(model, "PaddedConv2D"), names, strict=True):
        loader.conv(layer, name)
    for layer, level in zip(numbered(model, "Upsample"), range(3), strict=True):
        loader.conv(layer.conv, f"up_blocks.{level}.upsamplers.0.conv")
    (last,) = numbered(model, "GroupNormalization")
    loader.norm(last, "conv_norm_out")
    for layer, name in zip(numbered(model, "ResBlock"), unet_names("resnets"), strict=True):
        loader.norm(layer.entry_flow[0], f"{name}.norm1")
        loader.conv(layer.entry_flow[2], f"{name}.conv1")
        loader.dense(layer.embedding_flow[1], f"{name}.time_emb_proj")
        loader.norm(layer.exit_flow[0], f"{name}.norm2")
        loader.conv(layer.exit_flow[2], f"{name}.conv2")
        if f"{name}.conv_shortcut.weight" in loader.left:
            loader.conv(layer.residual_projection, f"{name}.conv_shortcut")
    transformers = numbered(model, "SpatialTransformer")
    for layer, name in zip(transformers, unet_names("attentions"), strict=True):
        loader.norm(layer.norm, f"{name}.norm")
        loader.conv(layer.proj1, f"{name}.proj_in")
        loader.conv(layer.proj2, f"{name}.proj_out")
        block, inner = layer.transformer_block, f"{name}.transformer_blocks.0"
        for number in (1, 2, 3):
            loader.norm(getattr(block, f"norm{number}"), f"{inner}.norm{number}")
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v"):
                loader.dense(getattr(getattr(block, attention), part), f"{inner}.{attention}.{part}")
            loader.dense(getattr(block, attention).out_proj, f"{inner}.{attention}.to_out.0")
        loader.dense(block.geglu.dense, f"{inner}.ff.net.0.proj")
        loader.dense(block.dense, f"{inner}.ff.net.2")
    loader.finish()
    return transformers


def load_vae(encoder: Any, weights: Weights) -> None:
    """Assign all weights of an autoencoder's encoder."""
    loader = Loader(weights)
    names = ["encoder.conv_in", *(f"encoder.down_blocks.{level}.downsamplers.0.conv" for level in range(3))]
    for layer, name in zip(
        [layer for layer in encoder.layers if type(layer).__name__ == "PaddedConv2D"],
        [*names, "encoder.conv_out", "quant_conv"],
        strict=True,
    ):
        loader.conv(layer, name)
    blocks = [f"encoder.down_blocks.{level}.resnets.{i}" for level in range(4) for i in range(2)]
    blocks += [f"encoder.mid_block.resnets.{i}" for i in range(2)]
    for layer, name in zip(
        [layer for layer in encoder.layers if type(layer).__name__ == "ResnetBlock"], blocks, strict=True
    ):
        for number in (1, 2):
            loader.norm(getattr(layer, f"norm{number}"), f"{name}.norm{number}")
            loader.conv(getattr(layer, f"conv{number}"), f"{name}.conv{number}")
        if f"{name}.conv_shortcut.weight" in loader.left:
            loader.conv(layer.residual_projection, f"{name}.conv_shortcut")
    (attention,) = (layer for layer in encoder.layers if type(layer).__name__ == "AttentionBlock")
    loader.norm(attention.norm, "encoder.mid_block.attentions.0.group_norm")
    for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        loader.conv(getattr(attention, ours), f"encoder.mid_block.attentions.0.{theirs}")
    (last,) = (layer for layer in encoder.layers if type(layer).__name__ == "GroupNormalization")
    loader.norm(last, "encoder.conv_norm_out")
    loader.finish()


def load_models(folder: Path, keras: Any) -> tuple[Any, Callable[[np.ndarray], list[np.ndarray]]]:
    """Return the encoder, and a function from latents to the 16 maps, means over heads, and four sums over layers."""
    from keras_cv.src.models.stable_diffusion.image_encoder import ImageEncoder
    from third_party.keras_cv.diffusion_model import DiffusionModel
    from third_party.keras_cv.stable_diffusion import StableDiffusionBase

    encoder = ImageEncoder(download_weights=False)
    load_vae(encoder, load_file(folder / "vae.safetensors"))
    model = DiffusionModel(512, 512, 77, download_weights=False)
    transformers = load_unet(model, load_file(folder / "unet.safetensors"))
    maps = [keras.layers.Lambda(lambda w: keras.backend.mean(w, axis=1))(t.output[1]) for t in transformers]
    recording = keras.Model(model.inputs, [*maps, *model.outputs[1:5]])
    time = StableDiffusionBase._get_timestep_embedding(None, 300, 1)
    context = np.load(folder / CONTEXT_FILE)
    return encoder, lambda latents: recording.predict_on_batch([latents, time, context])


class InFloat32:
    """TensorFlow as the release's method sees it, with float32 in the place of float16.

    The release sums 4,096 products in float16 in its first round of merging, which changes labels (difference 7).
    """

    def __init__(self, tensorflow: Any) -> None:
        self._tensorflow = tensorflow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensorflow, "float32" if name == "float16" else name)


def main(checkout: str, folder: Path, images: list[str]) -> None:
    """Write what the reference computes for each image: latents, maps, aggregated attention and labels."""
    sys.path.insert(0, checkout)
    from tensorflow import expand_dims, keras

    from diffseg import segmentor
    from diffseg.utils import augmenter, process_image

    segmentor.tf = InFloat32(segmentor.tf)
    encoder, run = load_models(folder, keras)
    method = segmentor.DiffSeg(list(np.load(folder / THRESHOLDS_FILE)), False, 16)
    for number, image in enumerate(images):
        latents = np.asarray(encoder(expand_dims(augmenter(process_image(image)), axis=0), training=False))
        *maps, w64, w32, w16, w8 = run(latents)
        aggregated = method.aggregate_weights([w64[0], w32[0], w16[0], w8[0]])
        labels = method.generate_masks(aggregated, method.kl_threshold, method.grid)
        arrays = {f"map{index}": value[0] for index, value in enumerate(maps)}
        aggregated = aggregated.reshape(4096, 4096).astype(np.float32)
        np.savez(folder / f"reference{number}.npz", latents=latents[0], aggregated=aggregated, labels=labels, **arrays)
        print(f"reference: image {number + 1} of {len(images)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
