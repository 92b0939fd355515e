"""Time a K-way normalised cut as a share of the model's pass: `make proof NAME=ncut-share ARGS="--device cuda"`.

The model is SD 1.5 with random weights at 512 pixels, which takes as long as real weights do. Its queries are scaled
up, so that attention has peaks. A cut takes the same steps whatever the image, except for two small decompositions.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import numpy as np
import torch

from diffseg import Segmenter
from diffseg.attention.layers import self_attention_layers
from diffseg.method.ncut import cut, feature_weights, spectrum
from diffseg.model.backbone import Backbone
from diffseg.settings import Dtype, settings_of
from jobs.benchmarks.measure import alternate
from jobs.benchmarks.models import SD15, checkpoint_of

QUERY_SCALE = 8.0


def measure(*, device: str, batch: int, repetitions: int, small: bool) -> list[tuple[str, float]]:
    """Return what was measured and its median seconds per image; the first entry is the pass.

    Args:
        device: Device of the model.
        batch: Images at once.
        repetitions: Turns that are measured.
        small: Whether the model is tiny, to try the program.
    """
    dtype: Dtype = "float32" if device == "cpu" else "bfloat16"
    checkpoint = checkpoint_of(SD15, dtype=dtype, device=device, small=small)
    with torch.no_grad():
        for layer in self_attention_layers(checkpoint.unet):
            layer.to_q.weight.mul_(QUERY_SCALE)
    backbone = Backbone(checkpoint)
    segmenters = {
        name: Segmenter(backbone, settings_of(method=method, ncut_on=on), batch_size=batch)
        for name, method, on in (
            ("diffseg", "diffseg", "attention"),
            ("ncut", "ncut", "attention"),
            ("ncut of features", "ncut", "features"),
        )
    }
    first = segmenters["ncut of features"]
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    inputs = [first.prepare(image) for _ in range(batch)]
    signals = first.attention_of(inputs)
    assert signals.layer_output is not None
    features = signals.layer_output.maps

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def run(segmenter: Segmenter) -> None:
        with torch.inference_mode():
            for stage in segmenter.stages:
                stage.run(signals, None)
        wait()

    def solve(weights: torch.Tensor) -> None:
        with torch.inference_mode():
            cut(spectrum(weights), 0.5)
        wait()

    def whole_pass() -> None:
        segmenters["ncut"].attention_of(inputs)
        wait()

    variants = {
        "the pass: VAE, UNet, recording and aggregation": whole_pass,
        "stage diffseg: merging and assigning": lambda: run(segmenters["diffseg"]),
        "stage ncut: cut and assigning": lambda: run(segmenters["ncut"]),
        "stage ncut, of features": lambda: run(segmenters["ncut of features"]),
        "the cut of attention alone": lambda: solve(signals.self_attention),
        "the cut of features alone": lambda: solve(feature_weights(features)),
    }
    seconds = alternate(variants, repetitions)
    return [(name, statistics.median(of_variant) / batch) for name, of_variant in seconds.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of times and of their shares of the pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="device of the model")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--repetitions", type=int, default=5, help="turns that are measured, after one to warm up")
    parser.add_argument("--small", action="store_true", help="use a tiny model, which says nothing about shares")
    flags = parser.parse_args(arguments)
    rows = measure(device=flags.device, batch=flags.batch, repetitions=flags.repetitions, small=flags.small)
    device = torch.cuda.get_device_name() if flags.device.startswith("cuda") else flags.device
    print(f"SD 1.5 at 512 px, random weights, batch {flags.batch}, {device}\n\n| step | ms per image | of the pass |")
    print("|---|---|---|")
    for name, seconds in rows:
        print(f"| {name} | {1000 * seconds:.2f} | {seconds / rows[0][1]:.1%} |")


if __name__ == "__main__":
    main()
