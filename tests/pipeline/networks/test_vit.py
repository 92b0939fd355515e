"""The plain ViT: weights of transformers and timm give the outputs of their formulas; its files; what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from trainings import VIT
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from pipeline.networks.build import create_network
from pipeline.networks.files import load_network, save_network
from pipeline.networks.library import normalised
from pipeline.networks.onnx_export import to_onnx
from pipeline.networks.vit import ViTConfig as OwnConfig
from pipeline.networks.vit import ViTSegmenter
from pipeline.storage import SourceError, Storage

OWN = {**VIT, "num_hidden_layers": 4}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def create(folder: Path | None) -> ViTSegmenter:
    network, _ = create_network("vit", dimensions=3, width=24, backbone=None if folder is None else str(folder))
    assert isinstance(network, ViTSegmenter)
    return network.eval()


def images_of(side: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
@pytest.mark.parametrize("side", [32, 64])
@torch.inference_mode()
def test_weights_of_transformers_give_its_tokens_and_attention(kind: Any, side: int, tmp_path: Path) -> None:
    """At the side that its positions have, and at another, for which they are interpolated."""
    torch.manual_seed(1)
    model = kind._from_config(ViTConfig(**OWN), attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    images = images_of(side)
    vit = model if kind is ViTModel else model.vit
    expected = vit(images, interpolate_pos_encoding=True, output_hidden_states=True, output_attentions=True)
    tokens = create(tmp_path).encoder(images, with_attention=True)
    last = expected.last_hidden_state
    assert torch.allclose(tokens.image, last[:, 0], atol=1e-5)
    assert torch.allclose(tokens.final.flatten(2).transpose(1, 2), last[:, 1:], atol=1e-5)
    assert torch.allclose(tokens.early.flatten(2).transpose(1, 2), expected.hidden_states[2][:, 1:], atol=1e-5)
    assert tokens.attention is not None
    attention = torch.cat(expected.attentions[2:], dim=1)[:, :, 1:, 1:]  # of all tokens; ours is before the softmax
    among_patches = attention / attention.sum(dim=-1, keepdim=True)
    assert torch.allclose(tokens.attention.softmax(dim=-1), among_patches, atol=1e-5)


def timm_weights(channels: int, blocks: int, patch: int, grid: int) -> dict[str, Tensor]:
    """Return random weights with the names and shapes of timm's VisionTransformer, with its classifier."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, channels),
        "pos_embed": (1, 1 + grid**2, channels),
        "patch_embed.proj.weight": (channels, 3, patch, patch),
        "patch_embed.proj.bias": (channels,),
        "norm.weight": (channels,),
        "norm.bias": (channels,),
        "head.weight": (5, channels),
        "head.bias": (5,),
    }
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (2, 1), "mlp.fc2": (1, 2)}
    for number in range(blocks):
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{number}.{name}.{part}": (channels,) for part in ("weight", "bias")}
        for name, (out, into) in linear.items():
            shapes[f"blocks.{number}.{name}.weight"] = (out * channels, into * channels)
            shapes[f"blocks.{number}.{name}.bias"] = (out * channels,)
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def timm_tokens(weights: dict[str, Tensor], images: Tensor, heads: int) -> Tensor:
    """Return all final tokens by the formulas of timm's VisionTransformer, in float64 and without its modules."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = F.conv2d(images.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + w["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for number in range(2):
        block = f"blocks.{number}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        outputs = []
        for query, key, value in zip(*(part.chunk(heads, dim=-1) for part in qkv), strict=True):
            scores = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).exp()
            outputs.append(scores / scores.sum(dim=-1, keepdim=True) @ value)
        x = x + linear(torch.cat(outputs, dim=-1), f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    return norm(x, "norm")


@pytest.mark.parametrize("arguments", [{}, {"num_heads": 4}])
@torch.inference_mode()
def test_weights_of_timm_give_the_tokens_of_its_formulas(arguments: dict[str, int], tmp_path: Path) -> None:
    """Heads have 64 channels unless config.json says otherwise, and it says how images are normalised."""
    weights = timm_weights(channels=128, blocks=2, patch=8, grid=4)
    save_file(weights, tmp_path / "model.safetensors")
    plain = {"architecture": "vit_small_patch8", "num_classes": 5, "pretrained_cfg": IMAGENET, "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    images = images_of(32)
    expected = timm_tokens(weights, normalised(images), arguments.get("num_heads", 2))
    tokens = create(tmp_path).encoder(images)
    assert torch.allclose(tokens.image.double(), expected[:, 0], atol=1e-4)
    assert torch.allclose(tokens.final.flatten(2).transpose(1, 2).double(), expected[:, 1:], atol=1e-4)


def test_a_network_learns_with_all_weights_and_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN))
    torch.manual_seed(3)
    network, about = create_network("vit", dimensions=3, width=24, backbone=str(tmp_path / "config.json"))
    images = images_of(64)
    output = network(images)
    assert output.shape == (2, 3, 8, 8)
    output.square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
    assert network(images_of(36)).shape == (2, 3, 4, 4), "resized to 32 pixels, the nearest multiple of a patch"
    model = Storage(url=str(tmp_path / "model"))
    config = about | {"target": "classes", "dimensions": 3, "size": 64, "class_names": ["background", "a", "b"]}
    save_network(model, network, config)
    loaded, read = load_network(model)
    assert (read["network"], read["patch"], read["class_names"]) == ("vit", 8, ["background", "a", "b"])
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))
    save_network(model, network, config | {"channels": 4096})
    with pytest.raises(SourceError, match="the weights are"):
        load_network(model)


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    def refused(plain: dict[str, Any], message: str, weights: dict[str, Tensor] | None = None) -> None:
        (tmp_path / "config.json").write_text(json.dumps(plain))
        if weights is not None:
            save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            create(tmp_path if weights is not None else tmp_path / "config.json")

    refused({"model_type": "swin"}, "model_type 'swin'")
    refused({**OWN, "hidden_act": "relu"}, "hidden_act 'relu'")
    refused({**OWN, "num_attention_heads": 3}, "16 channels: expected a multiple of the 3 heads")
    weights = timm_weights(channels=64, blocks=2, patch=8, grid=4)
    scaled = {**weights, "blocks.0.ls1.gamma": torch.ones(64)}
    refused({"architecture": "vit_ls"}, r"have unknown blocks\.0\.ls1\.gamma, one of 1", scaled)
    del weights["norm.bias"]
    refused({"architecture": "vit"}, r"lack norm\.bias, one of 1", weights)
    refused({"architecture": "resnet50"}, "architecture resnet50: the network vit takes", {"fc.weight": torch.ones(1)})


def test_onnxruntime_gives_the_output_for_any_number_of_images() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    shape = OwnConfig(patch=8, channels=16, blocks=3, heads=2, hidden=32, grid=3)
    network = ViTSegmenter(shape, 3).eval()
    config = {"size": 32, "class_names": [], "target": "segments"}
    session = onnxruntime.InferenceSession(to_onnx(network, config))
    for images in (images_of(32), images_of(32)[:1]):
        (found,) = session.run(["embedding"], {"image": images.numpy()})
        with torch.inference_mode():
            assert torch.allclose(torch.from_numpy(found), network(images), atol=1e-5)
