"""CLIPs of reduced width in the transformers layout, with random weights or trained on captioned coloured shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_checkpoints import END, merges_of, vocabulary, write_json, write_tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

SIDE, PATCH = 32, 4
COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 210),
    "yellow": (220, 210, 60),
    "purple": (150, 60, 170),
    "grey": (128, 128, 128),
}
NAMES = tuple(COLOURS)
WORDS = (*NAMES, "and", "a", "photo", "of", "picture", "with", "square", "circle")
CAPTIONS = ("{}", "a photo of {}", "a picture with {}")


def write_clip(folder: Path, network: CLIPModel | None = None, *, width: int = 32, layers: int = 3) -> Path:
    """Write a checkpoint with the files of a published one; without a network, its weights are random."""
    if network is None:
        network = new_clip(width=width, layers=layers)
        with torch.no_grad():
            for weight in network.parameters():
                if weight.ndim:
                    weight.add_(torch.randn_like(weight) * 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, padding=END, words=WORDS)
    network.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.3, 0.35]})
    return folder


def new_clip(*, width: int, layers: int) -> CLIPModel:
    words = vocabulary(merges_of(WORDS))[0]
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    text = {"vocab_size": len(words), "num_hidden_layers": 1, "max_position_embeddings": 32, "bos_token_id": 0}
    text |= {"eos_token_id": words[END], "pad_token_id": words[END]}
    vision = {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": layers}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=width))


def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one or two shapes on a background: uint8 [SIDE, SIDE, 3], and the index of each pixel's colour."""
    count = int(generator.integers(2, 4))
    chosen = generator.permutation(len(NAMES))[:count]
    ground_truth = np.full((SIDE, SIDE), chosen[0])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in chosen[1:]:
        y, x = generator.uniform(6, SIDE - 6, 2)
        radius = generator.uniform(5, 9)
        far = (np.abs(rows - y), np.abs(columns - x))
        inside = np.maximum(*far) < radius if generator.random() < 0.5 else np.hypot(*far) < radius
        ground_truth[inside] = index
    image = np.array(list(COLOURS.values()))[ground_truth] * generator.uniform(0.8, 1.1)
    image = image + generator.normal(0, 25, (SIDE, SIDE, 3))
    return image.clip(0, 255).astype(np.uint8), ground_truth


def pixels_of(images: list[np.ndarray]) -> torch.Tensor:
    """Return images as float32 [B, 3, SIDE, SIDE] in [−1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_trained_clip(folder: Path, *, steps: int, batch: int = 48) -> Path:
    """Train by CLIP's own loss on images and captions. Captions name what an image shows, but never where."""
    torch.manual_seed(0)
    network = new_clip(width=48, layers=2)
    write_clip(folder, network)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = np.random.default_rng(0)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.3, 0.35]))
    for _ in range(steps):
        drawn = [draw(generator) for _ in range(batch)]
        shown = [generator.permutation(np.unique(ground_truth)) for _, ground_truth in drawn]
        captions = [
            generator.choice(CAPTIONS).format(" and ".join(NAMES[index] for index in indices)) for indices in shown
        ]
        content = torch.tensor([sum(1 << int(index) for index in indices) for indices in shown])
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        pixels = (pixels_of([image for image, _ in drawn]) + 1) / 2
        output = network(input_ids=tokens.input_ids, pixel_values=(pixels - mean) / std)
        same = (content[:, None] == content).fill_diagonal_(False)  # a caption with the same content is not a negative
        logits = output.logits_per_image.masked_fill(same, -torch.inf)
        target = torch.arange(batch)
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    write_clip(folder, network)
    return folder


def drop_weight(folder: Path, name: str) -> None:
    """Remove one weight from the files."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
