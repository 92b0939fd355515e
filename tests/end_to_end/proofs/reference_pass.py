"""Compare a whole pass with google/diffseg's TensorFlow model on the same weights: `make proof NAME=reference-pass`.

    make proof NAME=reference-pass CHECKOUT=../google-diffseg ARGS="--tensorflow ../tf/bin/python --images a.jpg b.jpg"

One set of weights of SD 1.4's layout is drawn at random. Keys of self-attention equal queries, and queries are scaled
up, so that positions attend to those that look alike and images have segments. The weights are loaded into the released
model and into ours. Latents, the 16 maps of self-attention, the aggregated attention and the label maps of each image
are compared: first as diffusers defines the model, and then with the constants of the release. The release merges in
float16, which changes labels, and is made to merge in float32. Random weights show that
both compute the same; they say nothing about quality.

The Python of the reference needs tensorflow 2.14, keras-cv 0.6.4, scikit-learn, matplotlib and safetensors. It takes 16
gigabytes of memory, six of disk, and some five minutes of a core for each image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.activations import GEGLU
from reference_pass_tensorflow import CONTEXT_FILE, THRESHOLDS_FILE
from safetensors.torch import save_file

from diffseg import Segmenter
from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.layers import self_attention_layers
from diffseg.attention.recorder import AttentionRecorder
from diffseg.images.decode import decode_image
from diffseg.method.decide import decide
from diffseg.method.stages import run_stages
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint
from diffseg.settings import settings_of
from jobs.benchmarks.models import SD15, checkpoint_of

RTOL, MIOU = 1e-2, 0.97
"""Largest relative error of latents and maps, and least agreement of label maps."""

SIDE = 512

VARIANTS = ("as diffusers defines it", "with the release's constants")
"""How our model is run. The second one also resizes the image without rounding to whole levels."""


class RecordingEachLayer(BlockwiseAttention):
    """The backend, which also keeps the map of each self-attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[torch.Tensor] = []

    def self_attention(
        self,
        queries_BHPD: torch.Tensor,
        keys_BHPD: torch.Tensor,
        values_BHPD: torch.Tensor | None,
        scale: float,
        total_BPP: torch.Tensor,
    ) -> torch.Tensor | None:
        """Record a layer, and keep its map."""
        map_BPP = torch.zeros_like(total_BPP)
        output = super().self_attention(queries_BHPD, keys_BHPD, values_BHPD, scale, map_BPP)
        total_BPP.add_(map_BPP)
        self.maps.append(map_BPP)
        return output


def random_checkpoint(query_scale: float) -> Checkpoint:
    """Return SD 1.4's layout with random weights, peaked attention to similar positions, and a random prompt."""
    checkpoint = checkpoint_of(SD15, dtype="float32", device="cpu")
    with torch.no_grad():
        for layer in self_attention_layers(checkpoint.unet):
            layer.to_k.weight.copy_(layer.to_q.weight)
            layer.to_q.weight.mul_(query_scale)
    return replace(checkpoint, context=torch.randn(checkpoint.context.shape))


def write_weights(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the weights and the prompt where the reference finds them."""
    vae = {name: weight.contiguous() for name, weight in checkpoint.vae.state_dict().items()}
    unet = {name: weight.contiguous() for name, weight in checkpoint.unet.state_dict().items()}
    save_file(vae, folder / "vae.safetensors")
    save_file(unet, folder / "unet.safetensors")
    np.save(folder / CONTEXT_FILE, checkpoint.context.numpy())


def use_constants_of_release(checkpoint: Checkpoint) -> None:
    """Give the models the epsilons of the release's normalisations and its approximation of GELU, in place."""
    for module in (*checkpoint.vae.modules(), *checkpoint.unet.modules()):
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5
        if isinstance(module, GEGLU):
            module.gelu = partial(torch.nn.functional.gelu, approximate="tanh")


def square_without_rounding(image: np.ndarray) -> torch.Tensor:
    """Return the middle square of an image, resized as the release does, float32 [3, S, S] in [−1, 1].

    Ours has whole levels of 0 to 255, as an image of that size would have.
    """
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = torch.from_numpy(image[top : top + side, left : left + side]).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(square, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return resized[0] / 127.5 - 1


def run_ours(checkpoint: Checkpoint, tau: float, image: Path, path: Path, *, rounds: bool) -> None:
    """Write latents, maps, aggregated attention and labels of an image with the preset `google`."""
    backend = RecordingEachLayer()
    backbone = Backbone(checkpoint)
    backbone.recorder = AttentionRecorder(checkpoint.unet, backend)
    segmenter = Segmenter(backbone, settings_of("google", tau=tau))
    decoded = decode_image(image)
    prepared = segmenter.prepare(decoded)
    if not rounds:
        prepared = replace(prepared, pixels=square_without_rounding(decoded))
    latents = backbone.latents(prepared.pixels[None])[0].permute(1, 2, 0)
    signals = segmenter.attention_of([prepared])
    with torch.inference_mode():
        scores = run_stages(segmenter.stages, signals)
    labels = decide(scores.maps[0], (SIDE, SIDE)).labels
    arrays: dict[str, Any] = {f"map{index}": map_BPP[0].numpy() for index, map_BPP in enumerate(backend.maps)}
    np.savez(path, latents=latents.numpy(), aggregated=signals.self_attention[0].numpy(), labels=labels, **arrays)


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference divided by the norm of what is expected."""
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def agreement(labels: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean over the expected segments of the largest IoU with a segment."""
    table = np.zeros((int(expected.max()) + 1, int(labels.max()) + 1))
    np.add.at(table, (expected.ravel(), labels.ravel()), 1)
    unions = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
    present = table.sum(axis=1) > 0
    return float((table / np.maximum(unions, 1))[present].max(axis=1).mean())


def compare(ours: Path, reference: Path, *, with_maps: bool) -> tuple[str, bool]:
    """Return a row of the table for an image, and whether its label map agrees, and `with_maps` its maps too."""
    with np.load(ours) as found, np.load(reference) as expected:
        latents = relative_error(found["latents"], expected["latents"])
        maps = [relative_error(found[f"map{i}"], expected[f"map{i}"]) for i in range(16)]
        aggregated = relative_error(found["aggregated"], expected["aggregated"])
        miou = agreement(found["labels"], expected["labels"])
        peak = float(np.median(expected["map0"].max(axis=1))) * expected["map0"].shape[0]
        segments = f"{len(np.unique(found['labels']))} and {len(np.unique(expected['labels']))}"
    cells = [f"{latents:.1e}", f"{min(maps):.1e} to {max(maps):.1e}", f"{aggregated:.1e}", segments, f"{miou:.4f}"]
    agrees = miou >= MIOU and (not with_maps or max(latents, *maps, aggregated) <= RTOL)
    return " | ".join([*cells, f"{peak:.0f} times"]), agrees


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of the differences.

    The exit status is 0 if all label maps agree, and all maps with the release's constants are within bounds.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, help="folder of google/diffseg")
    parser.add_argument("--tensorflow", default=sys.executable, help="Python that has TensorFlow and keras-cv")
    parser.add_argument(
        "--images", nargs="+", required=True, type=Path, help="photographs of at least 512 pixels a side"
    )
    parser.add_argument("--tau", type=float, default=1.1, help="merging threshold of the three rounds")
    parser.add_argument("--query-scale", type=float, default=10.0, help="factor of the queries of self-attention")
    flags = parser.parse_args(arguments)
    images = [str(image.resolve()) for image in flags.images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = random_checkpoint(flags.query_scale)
        write_weights(checkpoint, folder)
        np.save(folder / THRESHOLDS_FILE, np.array([flags.tau] * 3))
        for variant in VARIANTS:
            for number, image in enumerate(images):
                path = folder / f"{variant}{number}.npz"
                run_ours(checkpoint, flags.tau, Path(image), path, rounds=variant == VARIANTS[0])
                print(f"{variant}: image {number + 1} of {len(images)}", flush=True)
            use_constants_of_release(checkpoint)
        del checkpoint
        reference = Path(__file__).with_name("reference_pass_tensorflow.py")
        checkout = str(Path(flags.checkout).resolve())
        subprocess.run([flags.tensorflow, str(reference), checkout, name, *images], check=True)
        rows = {
            f"{image.name}, {variant}": compare(
                folder / f"{variant}{number}.npz",
                folder / f"reference{number}.npz",
                with_maps=variant == VARIANTS[1],
            )
            for variant in VARIANTS
            for number, image in enumerate(flags.images)
        }
    print("\n| image | latents | 16 maps | aggregated | segments, ours and theirs | mIoU | peak over uniform |")
    print("|---|---|---|---|---|---|---|")
    for row_name, (row, _) in rows.items():
        print(f"| {row_name} | {row} |")
    return 0 if all(agrees for _, agrees in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
