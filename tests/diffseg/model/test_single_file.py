"""Checkpoints in single files: converted by diffusers, offline, without pickle, with the same weights as a folder."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from original_layout import small_tokenizer, write_configs, write_single_file
from safetensors.torch import load_file, save_file
from small_checkpoints import change_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffseg.model import single_file
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.config_fields import TEXT_FIELDS, check_unet, check_vae
from diffseg.model.config_rules import check_config
from diffseg.model.layout import CONVERT_CKPT, CheckpointError, read_json
from diffseg.model.single_file import CONFIGS, KINDS, clip_tokenizer
from diffseg.model.text import prompt_of_names
from diffseg.model.text_encoders import load_tokenizer

PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
"""Parameters of the published models."""

Written = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a single file of each kind, and the configurations that describe them."""
    root = tmp_path_factory.mktemp("single")
    for layout in ("sd1", "sd2", "sdxl"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            write_single_file(root / layout, layout)
        write_configs(root / layout, root / "configs", layout)
    return root


@pytest.fixture
def written(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Return a function that returns a folder and a copy of a single file with the same weights. It has no network."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    def write(layout: str) -> tuple[Path, Path]:
        return small / layout, Path(shutil.copy(small / f"{layout}.safetensors", tmp_path))

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(single_file, "CONFIGS", small / "configs")
    monkeypatch.setattr(
        single_file,
        "clip_tokenizer",
        lambda padding: load_tokenizer(small_tokenizer(tmp_path / f"tokenizer{len(padding)}", padding), "small"),
    )
    return write


@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_a_single_file_gives_the_same_model_as_a_folder(layout: str, written: Written) -> None:
    folder, file = written(layout)
    expected, loaded = load_checkpoint(folder, text=True), load_checkpoint(file, text=True)
    for part in ("unet", "vae"):
        of_folder, of_file = getattr(expected, part).state_dict(), getattr(loaded, part).state_dict()
        assert of_folder.keys() == of_file.keys()
        assert all(torch.equal(of_folder[name], of_file[name]) for name in of_folder)
    assert torch.equal(loaded.context, expected.context)
    assert loaded.added.keys() == expected.added.keys()
    assert all(torch.equal(loaded.added[name], expected.added[name]) for name in expected.added)
    assert loaded.text is not None
    assert expected.text is not None
    prompt = prompt_of_names(("the an", "cat"))
    assert torch.equal(loaded.text.embed(prompt.text).context, expected.text.embed(prompt.text).context)
    assert loaded.text.columns(prompt) == expected.text.columns(prompt)
    assert (loaded.resolution, loaded.tau, loaded.timestep) == (128, (1.1, 1.1, 1.1), 300)
    assert loaded.name == str(file)
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_half_precision_and_another_autoencoder(written: Written) -> None:
    folder, file = written("sd1")
    half = load_checkpoint(file, dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype, half.context.dtype) == (torch.float16, torch.float32, torch.float16)
    replaced = load_checkpoint(file, vae=folder)
    assert replaced.sha256 != half.sha256
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(Backbone(replaced).latents(pixels), Backbone(load_checkpoint(file)).latents(pixels))


def test_playground_has_the_statistics_of_its_latents_in_the_file(written: Written) -> None:
    _, file = written("sdxl")
    mean, std = [-1.5, 1.25, 3.0, -0.75], [8.5, 6.0, 5.25, 5.5]
    change_weights(
        file,
        lambda w: w.update(edm_mean=torch.tensor(mean).view(1, 4, 1, 1), edm_std=torch.tensor(std).view(1, 4, 1, 1)),
    )
    loaded = load_checkpoint(file)
    config = loaded.vae.config
    assert (config.latents_mean, config.latents_std, config.scaling_factor) == (mean, std, 0.5)
    assert loaded.sigma_data == 0.5
    own = load_checkpoint(file, decoder=True).scheduler
    assert own == {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}


def test_cosxl_is_recognised_as_an_edm_model_and_consistency_models_are_refused(written: Written) -> None:
    _, file = written("sdxl")
    assert load_checkpoint(file).sigma_data is None
    change_weights(file, lambda w: w.update({"edm_vpred.sigma_max": torch.tensor(120.0)}))
    cosxl = load_checkpoint(file, decoder=True)
    assert cosxl.sigma_data == cosxl.scheduler["sigma_data"] == 1
    assert cosxl.scheduler["sigma_max"] == 120
    change_weights(
        file, lambda w: w.update({"model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(128, 16)})
    )
    with pytest.raises(
        CheckpointError, match=r"time_embed\.cond_proj\.weight embeds a guidance scale, .* folders only"
    ):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("kind", "marks", "expected"),
    [
        ("sd1", (), {}),
        ("sd2", (), {"prediction_type": "v_prediction"}),
        ("sdxl", ("v_pred",), {"prediction_type": "v_prediction"}),
        ("sdxl", ("ztsnr",), {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
)
def test_a_file_that_generates_says_what_its_network_predicts(
    written: Written, kind: str, marks: tuple[str, ...], expected: dict[str, Any]
) -> None:
    _, file = written(kind)
    change_weights(file, lambda w: w.update({mark: torch.zeros(1) for mark in marks}))
    loaded = load_checkpoint(file, decoder=True)
    assert loaded.scheduler == expected
    assert loaded.vae.decoder is not None


def without(beginning: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith(beginning)]:
            del weights[name]

    return change


def of_channels(count: int) -> Callable[[dict[str, torch.Tensor]], None]:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return lambda weights: weights.update({name: torch.zeros(32, count, 3, 3)})


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("sd1", without("first_stage_model."), r"sd1.safetensors: holds no vae \(names that begin with first_stage_m"),
        ("sd1", without("cond_stage_model."), r"holds no text encoder"),
        ("sd1", without(UNET), r"holds no unet .* for a part of a diffusers folder, give that folder"),
        ("sd1", of_channels(9), r"recognises its kind as inpainting; supported single files are SD 1.x"),
        ("sd1", of_channels(5), r"unet of .*: its weights do not fit those of sd1"),
        ("sd1", without(f"{UNET}out.2"), r"unet of .*sd1.safetensors: the file lacks weights: conv_out.weight"),
        ("sd1", without(f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q"), r"unet of .*lacks weights: mid_bl"),
        ("sd1", without("first_stage_model.encoder.mid"), r"vae of .*: the file lacks weights: encoder.mid_block"),
        ("sd1", without("first_stage_model.quant_conv"), r"vae of .*: the file lacks weights: quant_conv"),
        ("sd1", without("cond_stage_model.transformer.text_model.final"), r"text_encoder of .*: the file lacks weigh"),
        ("sdxl", without("conditioner.embedders.1.model.ln_final"), r"text_encoder_2 of .*: the file lacks weights"),
        ("sdxl", without(f"{UNET}label_emb"), r"unet of .*: its weights do not fit those of sdxl: KeyError"),
    ],
)
def test_a_file_that_is_not_a_whole_checkpoint_is_refused(
    layout: str, change: Callable[[dict[str, torch.Tensor]], None], message: str, written: Written
) -> None:
    _, file = written(layout)
    change_weights(file, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(file)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"no tensors here"), ("huge", b"\xff" * 8 + b"{}")):
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}.safetensors: does not load as safetensors"):
            load_checkpoint(file)


@pytest.mark.parametrize("name", ["model.ckpt", "it's $(touch x); model.ckpt"])
def test_a_pickled_file_is_refused_with_a_line_that_converts_it(name: str, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2).T}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / name)
    with pytest.raises(CheckpointError, match="is pickled, and pickled files can run code") as refusal:
        load_checkpoint(tmp_path / name)
    line = str(refusal.value).rpartition("in its folder: ")[2]
    assert CONVERT_CKPT in line
    subprocess.run(line.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True)
    converted = load_file(tmp_path / name.replace(".ckpt", ".safetensors"))
    assert all(torch.equal(converted[key], tensor) for key, tensor in tensors.items())
    assert not (tmp_path / "x").exists()


def test_the_conversion_runs_no_code_of_the_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "evil").touch, ()

    torch.save({"state_dict": {"a": torch.ones(1)}, "callback": Evil()}, tmp_path / "evil.ckpt")
    line = [sys.executable, "-c", CONVERT_CKPT, "evil.ckpt", "evil.safetensors"]
    assert subprocess.run(line, cwd=tmp_path, check=False, capture_output=True).returncode != 0
    assert not (tmp_path / "evil").exists()


def test_single_files_are_refused_where_a_folder_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "vae.safetensors"
    save_file({"encoder.conv_in.weight": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"vae.safetensors: is a file; a folder in the diffusers layout is neede"):
        load_checkpoint("tiny", vae=file)
    with pytest.raises(CheckpointError, match=r"no such file or folder, and not a hub id"):
        load_checkpoint("models/sd15.safetensors")


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_the_included_configurations_have_the_sizes_of_the_published_models(kind: str) -> None:
    folder = CONFIGS / kind
    check_unet(folder / "unet", read_json(folder / "unet" / "config.json"))
    check_vae(folder / "vae", read_json(folder / "vae" / "config.json"))
    counts = {}
    for part, model_class in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        with torch.device("meta"):
            counts[part] = parameters(model_class.from_config(model_class.load_config(str(folder), subfolder=part)))
    for part, text_class in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        if (folder / part).is_dir():
            config = read_json(folder / part / "config.json")
            check_config(folder / part, config, TEXT_FIELDS)
            with torch.device("meta"):
                counts[part] = parameters(text_class(CLIPTextConfig(**config)))
    assert counts == PARAMETERS[kind]


def parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_without_a_tokenizer_in_the_cache_the_empty_prompt_is_read_and_names_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single_file, "TOKENIZER", "nobody/has-this-tokenizer")
    first, second = clip_tokenizer("<|endoftext|>"), clip_tokenizer("!")
    full = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    assert first("", **full).input_ids.tolist() == [[49406] + [49407] * 76]
    assert second("", **full).input_ids.tolist() == [[49406, 49407] + [0] * 75]
    with pytest.raises(CheckpointError, match="holds no tokenizer, so names cannot be read"):
        first("a cat", **full)
