"""The parts of a training: its state, its settings, sampling and clustering of embeddings, and its curves."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffseg.method.decide import decide
from diffseg.optim import descend, optimiser_of, set_lr
from pipeline.networks.files import load_network, save_network
from pipeline.networks.regions import region_scores
from pipeline.networks.unet import SegmentationNetwork
from pipeline.storage import SourceError, Storage
from pipeline.training.curves import draw_curves
from pipeline.training.recipes.objective import sample_vectors
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.training.state import claim, load_checkpoint, save_checkpoint


def small(seed: int) -> tuple[SegmentationNetwork, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = SegmentationNetwork(width=8, dimensions=4)
    return network, optimiser_of(network)


def step(network: SegmentationNetwork, optimiser: torch.optim.Optimizer) -> None:
    set_lr(optimiser, 1e-3)
    descend(network(torch.ones(1, 3, 32, 32)).square().mean(), network, optimiser)


def test_a_training_continues_from_its_checkpoint(tmp_path: Path) -> None:
    model = Storage(url=str(tmp_path))
    network, optimiser = small(0)
    assert load_checkpoint(model, network, optimiser) == (0, [])
    step(network, optimiser)
    save_checkpoint(model, network, optimiser, 1, [{"step": 1, "loss": 0.5}])
    step(network, optimiser)
    restored, optimiser = small(1)
    assert load_checkpoint(model, restored, optimiser) == (1, [{"step": 1, "loss": 0.5}])
    step(restored, optimiser)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name]), name


def test_a_trained_network_is_rebuilt_from_its_folder(tmp_path: Path) -> None:
    model, (network, _) = Storage(url=str(tmp_path)), small(0)
    with pytest.raises(SourceError, match="no trained network"):
        load_network(model)
    save_network(model, network, {"width": 8, "dimensions": 4, "size": 32, "target": "segments"})
    loaded, config = load_network(model)
    assert config["size"] == 32
    images = torch.rand(2, 3, 64, 96)
    assert loaded(images).shape == (2, 4, 32, 48)
    assert torch.equal(loaded(images), network(images))


def test_a_model_folder_belongs_to_one_training(tmp_path: Path) -> None:
    model = Storage(url=str(tmp_path))
    claim(model, TrainSettings(), fingerprint="a", workers=1)
    claim(model, TrainSettings(), fingerprint="a", workers=1)
    with pytest.raises(ValueError, match="steps was 2000, is now 3"):
        claim(model, TrainSettings(steps=3), fingerprint="a", workers=1)
    with pytest.raises(ValueError, match="labels was a, is now b"):
        claim(model, TrainSettings(), fingerprint="b", workers=1)


def test_invalid_settings_are_refused() -> None:
    for invalid in ({"size": 100}, {"steps": 0}, {"width": 12}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(invalid)).replace("_", " ")):
            TrainSettings(**invalid)
    with pytest.raises(ValueError, match="without Ray"):
        TrainRunSettings(workers=2, no_ray=True)


def test_vectors_are_sampled_at_pixel_centres() -> None:
    """Vectors that hold their own position are linear, so bilinear sampling reproduces them exactly inside."""
    axis = (torch.arange(16) + 0.5) * 2
    positions = torch.stack([axis[:, None].expand(16, 16), axis.expand(16, 16)])[None]
    rows, columns = torch.tensor([[3, 17, 30]]), torch.tensor([[1, 30, 12]])
    vectors = sample_vectors(positions, torch.stack([rows, columns]), 32)
    assert torch.allclose(vectors[0, :, 0], rows[0] + 0.5, atol=1e-4)
    assert torch.allclose(vectors[0, :, 1], columns[0] + 0.5, atol=1e-4)


def test_regions_are_recovered_from_an_embedding() -> None:
    """Three planted directions with noise; in the right part of the image all signs are flipped."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.zeros(48, 64, dtype=torch.int64)
    regions[:, 20:45], regions[30:, 10:30] = 1, 2
    directions = torch.eye(8)[:3]
    embedding = directions[regions].permute(2, 0, 1) + 0.15 * torch.randn(8, 48, 64, generator=generator)
    embedding[:, 24:] *= -1
    labels = decide(region_scores(embedding), (48, 64)).labels
    assert labels.max() == 2
    for region in range(3):
        region_labels = torch.from_numpy(labels.astype("int64"))[regions == region]
        assert (region_labels == region_labels.mode().values).float().mean() > 0.98


def test_a_constant_embedding_is_one_region() -> None:
    assert region_scores(torch.ones(4, 20, 30)).shape == (1, 20, 30)


@pytest.mark.parametrize("count", [1, 40])
def test_the_curves_are_a_picture(count: int) -> None:
    records = [{"step": n + 1, "seconds": 1.0, "loss": 1.5 / (n + 1), "same": 0.9, "other": 0.1} for n in range(count)]
    with Image.open(io.BytesIO(draw_curves(records, "title"))) as picture:
        assert len(set(picture.convert("RGB").resize((190, 95)).get_flattened_data())) > 4
