"""The measurements of a GPU, on a CPU and with tiny models of the same layouts."""

from __future__ import annotations

import json

import pytest
import torch

from jobs.benchmarks import gpu
from jobs.benchmarks.measure import Comparison
from jobs.benchmarks.models import RANDOM_MODELS, SDXL, checkpoint_of, parameters


def test_all_cases_are_measured_and_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--small", "--repetitions", "1", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["agreement"] == 1, "both are CPUs"
    cases = [(comparison["part"], comparison["case"].split(" px")[0]) for comparison in document["comparisons"]]
    assert cases == [
        ("whole", "sd15-random, 64"),
        ("whole", "sd15-random, 128"),
        ("pipeline", "2 images, sd15-random, 64"),
        ("whole", "sd15-random, compiled, 64"),
        ("pipeline", "2 images, sd15-random, compiled, 64"),
        ("whole", "sd15-random, 64"),
        ("whole", "sdxl-random, 64"),
        ("whole", "tiny, 64"),
    ]
    whole, pipeline = document["comparisons"][0], document["comparisons"][2]
    assert 0 < whole["notes"]["share of that in ours"] <= whole["notes"]["share of that in the bare pass"]
    assert set(pipeline["seconds"]) == {"bare", "loop", "label"}
    assert all(seconds > 0 for variant in pipeline["seconds"].values() for seconds in variant)
    assert len([line for line in captured.err.splitlines() if line.startswith("| ")]) == 2 + len(cases)
    assert "labels of the embedded model as on a CPU: 1.0000 of the pixels" in captured.err


def test_the_summary_compares_labels_with_the_bare_pass_and_the_loop() -> None:
    seconds = {"bare": [0.160, 0.200, 0.160], "loop": [0.304] * 3, "label": [0.320, 0.310, 0.330]}
    notes = {"share of that in ours": 0.4, "peak MiB on the GPU": 9000}
    pipeline = Comparison(part="pipeline", case="c", seconds=seconds, baseline="loop", per=16)
    whole = Comparison(part="whole", case="w", seconds={"bare": [1], "ours": [1.5]}, baseline="bare", notes=notes)
    assert gpu.summary_lines([pipeline, whole])[2:] == [
        "| pipeline | c | 10.00 | 20.00 | 2.00 | 50.0 | 0.95 |  |  |",
        "| whole | w | 1000.00 | 1500.00 | 1.50 | 0.7 |  | 0.4 | 9000 |",
    ]


def test_without_a_gpu_the_program_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--device cpu --small" in " ".join(capsys.readouterr().err.split())


def test_the_random_sdxl_has_the_layout_of_sdxl() -> None:
    spec = RANDOM_MODELS[SDXL]
    with torch.device("meta"):
        unet = gpu_unet(spec.unet)
    assert sum(weight.numel() for weight in unet.parameters()) == 2_567_463_684, "as stabilityai/stable-diffusion-xl"
    small = checkpoint_of(SDXL, dtype="float32", device="cpu", small=True)
    assert {name: value.shape[1] for name, value in small.added.items()} == {"text_embeds": 1280}
    assert parameters(small) < 5e6


def gpu_unet(config: object) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**dict(config))  # type: ignore[call-overload]
