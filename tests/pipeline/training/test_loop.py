"""The parts of a training: its state, what it draws, and embeddings that become regions."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffseg.method.decide import decide
from diffseg.optim import descend, optimiser_of, set_lr
from pipeline.storage import SourceError, Storage
from pipeline.training.curves import draw_curves
from pipeline.training.network import SegmentationNetwork
from pipeline.training.objective import sampled
from pipeline.training.regions import region_scores
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.training.state import claim, load_checkpoint, load_network, save_checkpoint, save_network


def small(seed: int) -> tuple[SegmentationNetwork, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = SegmentationNetwork(width=8, dimensions=4)
    return network, optimiser_of(network)


def step(network: SegmentationNetwork, optimiser: torch.optim.Optimizer) -> None:
    set_lr(optimiser, 1e-3)
    descend(network(torch.ones(1, 3, 32, 32)).square().mean(), network, optimiser)


def test_a_state_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    place = Storage(url=str(tmp_path))
    one, its = small(0)
    assert load_checkpoint(place, one, its) == (0, [])
    step(one, its)
    save_checkpoint(place, one, its, 1, [{"step": 1, "loss": 0.5}])
    step(one, its)
    other, its = small(1)
    assert load_checkpoint(place, other, its) == (1, [{"step": 1, "loss": 0.5}])
    step(other, its)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_network_is_built_again_from_its_folder(tmp_path: Path) -> None:
    place, (network, _) = Storage(url=str(tmp_path)), small(0)
    with pytest.raises(SourceError, match="no trained network"):
        load_network(place)
    save_network(place, network, {"width": 8, "dimensions": 4, "size": 32, "target": "segments"})
    found, config = load_network(place)
    assert config["size"] == 32
    images = torch.rand(2, 3, 64, 96)
    assert found(images).shape == (2, 4, 32, 48)
    assert torch.equal(found(images), network(images))


def test_a_model_folder_belongs_to_one_training(tmp_path: Path) -> None:
    place = Storage(url=str(tmp_path))
    claim(place, TrainSettings(), fingerprint="a", workers=1)
    claim(place, TrainSettings(), fingerprint="a", workers=1)
    with pytest.raises(ValueError, match="steps 2000 there, 3 here"):
        claim(place, TrainSettings(steps=3), fingerprint="a", workers=1)
    with pytest.raises(ValueError, match="labels a there, b here"):
        claim(place, TrainSettings(), fingerprint="b", workers=1)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"size": 100}, {"steps": 0}, {"width": 12}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", " ")):
            TrainSettings(**wrong)
    with pytest.raises(ValueError, match="without Ray"):
        TrainRunSettings(workers=2, no_ray=True)


def test_pixels_are_sampled_where_they_are() -> None:
    """A vector that says its own place, which is linear, so that bilinear sampling gives it exactly inside."""
    axis = (torch.arange(16) + 0.5) * 2
    found = torch.stack([axis[:, None].expand(16, 16), axis.expand(16, 16)])[None]
    rows, columns = torch.tensor([[3, 17, 30]]), torch.tensor([[1, 30, 12]])
    vectors = sampled(found, torch.stack([rows, columns]), 32)
    assert torch.allclose(vectors[0, :, 0], rows[0] + 0.5, atol=1e-4)
    assert torch.allclose(vectors[0, :, 1], columns[0] + 0.5, atol=1e-4)


def test_regions_are_found_in_an_embedding() -> None:
    """Three planted directions with noise and signs at random; one of them in two places."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(48, 64, dtype=torch.int64)
    truth[:, 20:45], truth[30:, 10:30] = 1, 2
    directions = torch.eye(8)[:3]
    embedding = directions[truth].permute(2, 0, 1) + 0.15 * torch.randn(8, 48, 64, generator=generator)
    embedding[:, 24:] *= -1
    labels = decide(region_scores(embedding), (48, 64)).labels
    assert labels.max() == 2
    for region in range(3):
        found = torch.from_numpy(labels.astype("int64"))[truth == region]
        assert (found == found.mode().values).float().mean() > 0.98


def test_an_embedding_without_a_difference_is_one_region() -> None:
    assert region_scores(torch.ones(4, 20, 30)).shape == (1, 20, 30)


@pytest.mark.parametrize("count", [1, 40])
def test_the_curves_are_a_picture(count: int) -> None:
    records = [{"step": n + 1, "seconds": 1.0, "loss": 1.5 / (n + 1), "same": 0.9, "other": 0.1} for n in range(count)]
    with Image.open(io.BytesIO(draw_curves(records, "title"))) as picture:
        assert len(set(picture.convert("RGB").resize((190, 95)).get_flattened_data())) > 4
