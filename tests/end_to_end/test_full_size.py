"""One image through a checkpoint of the size of Stable Diffusion 1.5 with random weights: time and memory.

It writes 2 GB and needs 8 GB of memory, so only `make proof NAME=full-size` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from jobs.benchmarks.models import SD15_UNET, SD15_VAE

pytestmark = pytest.mark.full_size

# Runs in another process, whose peak memory is that of labelling alone.
LABEL = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from diffseg import Segmenter
from diffseg.devices import keep_freed_memory

def peak_bytes():
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

started = time.perf_counter()
segmenter = Segmenter.from_pretrained(sys.argv[1], tau=0.001)
loaded = time.perf_counter()
loading = peak_bytes()
keep_freed_memory()  # as a worker does
clear_refs = Path("/proc/self/clear_refs")
if clear_refs.exists():
    clear_refs.write_text("5")  # the peak of what follows alone
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
segmentation = segmenter(image)
labelled = time.perf_counter()
labelling = peak_bytes()
np.save(sys.argv[2], segmentation.labels)
parts = (segmenter.backbone.checkpoint.unet, segmenter.backbone.checkpoint.vae)
parameters = sum(p.numel() for part in parts for p in part.parameters())
print(json.dumps({"parameters": parameters, "load": loaded - started, "label": labelled - loaded,
                  "segments": len(segmentation.segments), "loading": loading, "labelling": labelling}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a checkpoint with the UNet and VAE of SD 1.5 as float16 files, without a text encoder."""
    torch.manual_seed(0)
    for part, model_class, config in (("unet", UNet2DConditionModel, SD15_UNET), ("vae", AutoencoderKL, SD15_VAE)):
        model_class(**config).half().save_pretrained(tmp_path / part)
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": [None, None], "tokenizer": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_one_image_at_512_pixels(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.npy"
    command = [sys.executable, "-c", LABEL, str(folder), str(labels)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(
            f"\nSD 1.5 size, {measured['parameters'] / 1e9:.2f} G parameters, one 512 px image in float32: loading "
            f"{measured['load']:.0f} s, labelling {measured['label']:.0f} s; peak memory "
            f"{measured['loading'] / 1e9:.2f} GB while loading, {measured['labelling'] / 1e9:.2f} GB while labelling, "
            f"of which weights {measured['parameters'] * 4 / 1e9:.2f} GB"
        )
    label_map = np.load(labels)
    assert label_map.shape == (480, 640)
    assert np.array_equal(np.unique(label_map), np.arange(measured["segments"]))
    assert measured["parameters"] > 0.85e9
    assert measured["labelling"] - 4 * measured["parameters"] < 2e9
