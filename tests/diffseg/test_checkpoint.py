"""Checkpoints in published layouts: loaded as their own pipelines would, or refused, naming the part at fault."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from small_checkpoints import LAYOUTS, write_json
from small_models import POOLED_WIDTH, SECOND_TEXT_WIDTH, TEXT_WIDTH

from diffseg.attention import self_attention_layers
from diffseg.backbone import Backbone
from diffseg.checkpoint import load_checkpoint
from diffseg.layout import CheckpointError, fingerprint

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
Copy = Callable[[str], Path]


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Copy:
    """A checkpoint of its own for the test to change."""
    return lambda layout: Path(shutil.copytree(checkpoints[layout], tmp_path / layout))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As HF_HUB_OFFLINE=1 and an empty HF_HUB_CACHE, which the library reads once, when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "textless"])
def test_empty_prompt_is_that_of_the_checkpoints_own_pipeline(layout: str, checkpoints: dict[str, Path]) -> None:
    """The unconditional half of classifier-free guidance is what an empty prompt is in each family."""
    checkpoint = load_checkpoint(checkpoints[layout])
    sdxl = layout.startswith("sdxl")
    pipeline = (StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline).from_pretrained(checkpoints[layout])
    arguments = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    with torch.no_grad():
        encoded = pipeline.encode_prompt("a cat", **arguments)
    torch.testing.assert_close(checkpoint.context, encoded[1], rtol=0, atol=1e-6)
    assert checkpoint.context.shape == (1, 77, TEXT_WIDTH + (SECOND_TEXT_WIDTH if sdxl else 0))
    assert not torch.allclose(encoded[0], encoded[1])
    assert (checkpoint.context == 0).all() == (layout == "sdxl")
    assert set(checkpoint.added) == ({"text_embeds", "time_ids"} if sdxl else set())
    if sdxl:
        torch.testing.assert_close(checkpoint.added["text_embeds"], encoded[3], rtol=0, atol=1e-6)
        sides = pipeline._get_add_time_ids((128, 128), (0, 0), (128, 128), torch.float32, POOLED_WIDTH)
        assert torch.equal(checkpoint.added["time_ids"], sides)


def test_without_a_text_encoder_the_context_is_one_zero_token(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["textless"])
    assert checkpoint.context.shape == (1, 1, TEXT_WIDTH)
    assert not checkpoint.context.any()


@pytest.mark.parametrize(
    ("layout", "resolution", "layers"), [("sd1", 128, 16), ("sd2-768", 768, 16), ("sdxl", 128, 28)]
)
def test_what_is_loaded(layout: str, resolution: int, layers: int, checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints[layout])
    assert checkpoint.resolution == resolution
    assert len(self_attention_layers(checkpoint.unet)) == layers
    assert (checkpoint.tau, checkpoint.timestep) == ((1.1, 1.1, 1.1), 300)
    assert checkpoint.name == str(checkpoints[layout])
    saved = load_file(checkpoints[layout] / UNET)
    assert all(torch.equal(saved[name], value) for name, value in checkpoint.unet.state_dict().items())
    assert not any(p.requires_grad for p in [*checkpoint.unet.parameters(), *checkpoint.vae.parameters()])


def test_decoder_and_text_encoder_are_not_in_memory(checkpoints: dict[str, Path]) -> None:
    def text_encoders() -> set[int]:
        gc.collect()
        return {id(thing) for thing in gc.get_objects() if type(thing).__name__.startswith("CLIPText")}

    before = text_encoders()
    checkpoint = load_checkpoint(checkpoints["sd1"])
    assert text_encoders() == before
    assert {name.split(".")[0] for name, _ in checkpoint.vae.named_parameters()} == {"encoder", "quant_conv"}


def test_latents_are_the_scaled_mean(checkpoints: dict[str, Path]) -> None:
    backbone = Backbone(load_checkpoint(checkpoints["sd1"]))
    pixels = torch.rand(2, 3, 64, 128) * 2 - 1
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoints["sd1"])
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert expected.shape == (2, 4, 8, 16)
    torch.testing.assert_close(backbone.latents(pixels), expected)
    assert torch.equal(backbone.latents(pixels), backbone.latents(pixels))


def test_tiny_autoencoders_are_loaded_too(copy: Copy) -> None:
    folder = copy("textless")
    shutil.rmtree(folder / "vae")
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    vae.save_pretrained(folder / "vae")
    change_json(folder / "vae" / "config.json", block_out_channels=None)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latents
    torch.testing.assert_close(Backbone(load_checkpoint(folder)).latents(pixels), expected)


def test_attention_blocks_of_the_vae_under_their_first_names(copy: Copy) -> None:
    """SD 1.x was published before diffusers renamed them."""
    folder = copy("sd1")
    expected = load_checkpoint(folder).vae.state_dict()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for key in [key for key in weights if "mid_block.attentions" in key]:
            for new, old in names.items():
                if f".{new}." in key:
                    weights[key.replace(new, old)] = weights.pop(key)

    change_weights(folder / VAE, rename)
    assert any("query" in key for key in load_file(folder / VAE))
    found = load_checkpoint(folder).vae.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_own_settings_of_a_checkpoint(copy: Copy) -> None:
    folder = copy("sd1")
    write_json(folder / "diffseg.json", {"tau": [0.5, 0.6], "timestep": 50, "resolution": 192})
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.tau, checkpoint.timestep, checkpoint.resolution) == ((0.5, 0.6), 50, 192)


def test_half_precision_files(copy: Copy) -> None:
    folder = copy("sd1")
    full = load_checkpoint(folder)
    for name in (UNET, VAE, TEXT):
        halves = {key: v.half() if v.is_floating_point() else v for key, v in load_file(folder / name).items()}
        save_file(halves, (folder / name).with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        (folder / name).unlink()
    half = load_checkpoint(folder)
    assert half.unet.dtype == torch.float32
    torch.testing.assert_close(half.context, full.context, rtol=0, atol=0.02)
    rounded = full.unet.conv_in.weight.half().float()
    assert torch.equal(half.unet.conv_in.weight, rounded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["sd1", "sdxl-prompt"])
def test_half_precision_is_safe_from_overflow(layout: str, dtype: torch.dtype, copy: Copy) -> None:
    folder = copy(layout)

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        for key, weight in weights.items():
            if "attn1.to_q" in key or "attn1.to_k" in key:
                weight.mul_(60)

    change_weights(folder / UNET, enlarge)
    checkpoint = load_checkpoint(folder, dtype=dtype)
    assert checkpoint.unet.dtype == checkpoint.context.dtype == dtype
    assert checkpoint.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    largest = []

    def products(layer: Any, args: tuple) -> None:
        queries, keys = layer.to_q(args[0]).float(), layer.to_k(args[0]).float()
        queries, keys = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in (queries, keys))
        largest.append((queries @ keys.transpose(-1, -2)).abs().max())

    for layer in self_attention_layers(checkpoint.unet):
        layer.register_forward_pre_hook(products)
    attention = Backbone(checkpoint).self_attention(torch.rand(1, 3, 128, 128) * 2 - 1, 300)
    assert max(largest) > torch.finfo(torch.float16).max, "the plain product must overflow, or this shows nothing"
    for maps in attention.maps.values():
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:2]))


def test_fingerprint_is_of_the_files_that_are_read(copy: Copy) -> None:
    folder = copy("sdxl")
    before = fingerprint(folder)
    assert load_checkpoint(folder).sha256 == before
    assert len(bytes.fromhex(before)) == hashlib.sha256().digest_size
    (folder / "README.md").write_text("other")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"other")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"other")
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    assert fingerprint(folder) == before
    seen = {before}
    for name in (UNET, VAE, TEXT, "text_encoder_2/model.safetensors", "tokenizer_2/vocab.json", "model_index.json"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        seen.add(fingerprint(folder))
    assert len(seen) == 7


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def cut_off(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def without_weight(name: str, key: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder / name, lambda weights: weights.pop(key))


def with_config(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / name, **changes)


def pickled(part: str, file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part / file).rename((folder / part / file).with_suffix(".bin"))


T5 = {"architectures": ["T5EncoderModel"], "model_type": "t5"}
LAYER_NORM = "text_model.encoder.layers.0.layer_norm2.bias"


@pytest.mark.parametrize(
    ("layout", "damage", "message"),
    [
        ("sd1", remove("unet"), r"unet of .*: looked for unet/config.json; the folder holds model_index.json, sched"),
        ("sd1", remove("vae"), r"vae of .*: looked for vae/config.json"),
        ("sd1", remove("text_encoder"), r"text_encoder of .*: looked for text_encoder/\*.safetensors; found nothing"),
        ("sd1", remove("text_encoder/config.json"), r"text_encoder.config.json: cannot be read as JSON"),
        (
            "sd1",
            remove("tokenizer"),
            r"tokenizer of .*: looked for tokenizer/vocab.json and merges.txt .*found nothing",
        ),
        ("sd1", remove("tokenizer/merges.txt"), r"tokenizer of .*; found special_tokens_map.json, token.*, vocab.json"),
        ("sdxl", remove("text_encoder_2"), r"text_encoder_2 of .*: looked for text_encoder_2/\*.safetensors"),
        ("sdxl", remove("model_index.json"), r"looked for text_encoder and text_encoder_2 in model_index.json"),
        ("sdxl", with_config("model_index.json", text_encoder=[None, None]), r"refiner"),
        ("sd1", pickled("unet", Path(UNET).name), r"unet of .*; found config.json, .*\.bin\. Only safetensors"),
        ("sd1", pickled("vae", Path(VAE).name), r"vae of .*; found config.json, .*\.bin\. Only safetensors"),
        ("sd1", pickled("text_encoder", "model.safetensors"), r"text_encoder of .*; found config.json, model.bin"),
        ("sd1", cut_off(UNET), r"unet of .*: its files do not load"),
        ("sd1", cut_off(VAE), r"vae of .*: its files do not load"),
        ("sd1", cut_off(TEXT), r"text_encoder of .*: its files do not load"),
        ("sd1", cut_off("tokenizer/vocab.json"), r"tokenizer of .*: its files do not load"),
        ("sd1", without_weight(UNET, "conv_in.bias"), r"unet of .*: its files lack weights, conv_in.bias"),
        ("sd1", without_weight(VAE, "quant_conv.bias"), r"vae of .*: its files lack weights, quant_conv.bias"),
        ("sd1", without_weight(TEXT, LAYER_NORM), r"text_encoder of .*: its files lack weights, .*layer_norm2.bias"),
        ("sd1", with_config("unet/config.json", in_channels=9), r"unet of .*: in_channels is 9; .* with 4"),
        ("sd1", with_config("vae/config.json", latent_channels=16), r"vae of .*: latent_channels is 16"),
        ("sd1", with_config("unet/config.json", _class_name="FluxTransformer2DModel"), r"is a FluxTransformer2DModel"),
        ("sd1", with_config("vae/config.json", _class_name="VQModel"), r"is a VQModel; looked for AutoencoderKL or"),
        ("sd1", with_config("unet/config.json", addition_embed_type="image"), r"addition_embed_type is image"),
        ("sd1", with_config("unet/config.json", sample_size=None), r"unet of .*sample_size is None"),
        ("sd1", with_config("unet/config.json", cross_attention_dim=64), r"unet of .*: its files do not load"),
        ("sd1", with_config("text_encoder/config.json", **T5), r"is a \['T5EncoderModel'\]; looked for CLIPTextModel"),
        ("sdxl", with_config("model_index.json", text_encoder_2=[None, None]), r"which go together"),
    ],
)
def test_what_cannot_be_used_is_refused_by_part(
    layout: str, damage: Callable[[Path], None], message: str, copy: Copy
) -> None:
    folder = copy(layout)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_decoder_is_not_needed(copy: Copy) -> None:
    folder = copy("sd1")
    change_weights(
        folder / VAE, lambda weights: [weights.pop(key) for key in [*weights] if key.startswith(("decoder", "post"))]
    )
    Backbone(load_checkpoint(folder)).latents(torch.zeros(1, 3, 64, 64))


def test_text_encoders_of_another_width_are_refused(copy: Copy, checkpoints: dict[str, Path]) -> None:
    folder = copy("sd1")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(checkpoints["sdxl"] / "text_encoder_2", folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"text encoder of .*: 48 numbers a token; its UNet reads 32"):
        load_checkpoint(folder)


def test_a_single_file_a_missing_folder_and_no_hub_id_are_told_apart(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"is a file; a folder in the diffusers layout is needed"):
        load_checkpoint(checkpoints["sd1"] / UNET)
    for nothing in ("/nowhere/at/all", "sd15", "a/b/c", "../sd/x"):
        with pytest.raises(CheckpointError, match=r"no such folder, and not a hub id \(owner/name\)"):
            load_checkpoint(nothing)


def test_an_unknown_hub_id_says_what_was_looked_for() -> None:
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: no such folder here, and the hub gave no such"):
        load_checkpoint("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"nobody/nothing: .* at revision v2: "):
        load_checkpoint("nobody/nothing", revision="v2")


def test_a_hub_id_and_its_revisions_come_from_the_local_cache(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    for reference, commit, layout in (("main", "a" * 40, "sd1"), ("v2", "b" * 40, "textless")):
        shutil.copytree(checkpoints[layout], repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    latest = load_checkpoint("owner/name")
    assert (latest.name, latest.sha256) == ("owner/name", fingerprint(checkpoints["sd1"]))
    for revision in ("v2", "b" * 40):
        named = load_checkpoint("owner/name", revision=revision)
        assert (named.name, named.sha256) == (f"owner/name@{revision}", fingerprint(checkpoints["textless"]))
    with pytest.raises(CheckpointError, match="at revision v3"):
        load_checkpoint("owner/name", revision="v3")
