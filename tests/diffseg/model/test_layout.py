"""Files that cannot be used are refused with the name of the part at fault; hub ids come from the local cache."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import TEXT, UNET, VAE, change_json, change_weights, write_json

from diffseg.model import layout
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.files import CHECKPOINT_FILES, VAE_FILES, ModelFiles, fingerprint
from diffseg.model.layout import CheckpointError
from diffseg.settings import Dtype

Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have the effect of HF_HUB_OFFLINE=1 and an empty HF_HUB_CACHE, which the library reads only on import."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_fingerprint_covers_the_files_that_are_read(copy: Copy) -> None:
    folder = copy("sdxl")
    before = fingerprint(folder)
    assert load_checkpoint(folder).sha256 == before
    assert len(bytes.fromhex(before)) == hashlib.sha256().digest_size
    (folder / "README.md").write_text("other")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"other")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"other")
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    assert fingerprint(folder) == before
    fingerprints = {before}
    for name in (UNET, VAE, TEXT, "text_encoder_2/model.safetensors", "tokenizer_2/vocab.json", "model_index.json"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        fingerprints.add(fingerprint(folder))
    assert len(fingerprints) == 7


def read(files: ModelFiles, *paths: str) -> list[str]:
    """Return which of some paths are read, each considered alone."""
    return [path for path in paths if files.select([path]) == [path]]


def test_which_paths_are_read() -> None:
    used = ("model_index.json", "unet/config.json", "text_encoder_2/model.safetensors", "tokenizer/merges.txt")
    assert read(CHECKPOINT_FILES, *used) == list(used)
    for path in ("README.md", "unet/x.bin", "a/unet/config.json", "tokenizer/a/b", "unet/other.safetensors"):
        assert not read(CHECKPOINT_FILES, path)
    for path in ("tokenizer/..", "tokenizer/.", "tokenizer/", "tokenizer//x", "../vae/config.json", "tokenizer/a\0b"):
        assert not read(CHECKPOINT_FILES, path), "this path names no file in the folder"
    used = ("config.json", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors")
    assert read(VAE_FILES, *used) == list(used)
    for path in ("unet/config.json", "vae/x.safetensors", "vae/vae/config.json", "vae/diffusion_pytorch_model.bin"):
        assert not read(VAE_FILES, path)


STEM = "unet/diffusion_pytorch_model"
WHOLE = [f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors", f"{STEM}.bin"]
OLD_SHARDS = [f"{STEM}-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)] + [
    f"{STEM}.safetensors.index.fp16.json",
    f"{STEM}-00001-of-00001.safetensors",
    f"{STEM}.safetensors.index.json",
]
NEW_SHARDS = [f"{STEM}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)] + [f"{STEM}.safetensors.index.fp16.json"]


@pytest.mark.parametrize(
    ("present", "dtype", "expected"),
    [
        (WHOLE, "float32", WHOLE[:1]),
        (WHOLE, "float16", WHOLE[1:2]),
        (WHOLE, "bfloat16", WHOLE[:1]),
        ([*WHOLE, f"{STEM}.bf16.safetensors"], "bfloat16", [f"{STEM}.bf16.safetensors"]),
        (WHOLE[1:], "float32", WHOLE[1:2]),
        (WHOLE[:1], "float16", WHOLE[:1]),
        (WHOLE[2:], "float32", []),
        (OLD_SHARDS, "float16", OLD_SHARDS[:3]),
        (OLD_SHARDS, "float32", OLD_SHARDS[3:]),
        ([*NEW_SHARDS, *WHOLE], "float16", [*NEW_SHARDS, WHOLE[1]]),
        (
            ["text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"],
            "float16",
            ["text_encoder/model.fp16.safetensors"],
        ),
    ],
)
def test_only_the_precision_that_a_run_wants_is_read(present: list[str], dtype: Dtype, expected: list[str]) -> None:
    assert CHECKPOINT_FILES.select(present, dtype) == sorted(expected)


def test_the_precision_that_is_hashed_is_the_one_that_is_loaded(copy: Copy) -> None:
    folder = copy("sdxl")
    loaded = load_checkpoint(folder, dtype=torch.float16)
    for name in (UNET, VAE, TEXT, "text_encoder_2/model.safetensors"):
        halves = {key: v.half() + 1 if v.is_floating_point() else v for key, v in load_file(folder / name).items()}
        save_file(halves, (folder / name).with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    full, half = load_checkpoint(folder), load_checkpoint(folder, dtype=torch.float16)
    assert full.sha256 == loaded.sha256, "files in half precision do not count where they are not read"
    assert half.sha256 == fingerprint(folder, dtype="float16") != full.sha256
    expected = load_file((folder / UNET).with_suffix(".fp16.safetensors"))
    assert all(torch.equal(value, expected[name]) for name, value in half.unet.state_dict().items())
    assert not torch.equal(half.vae.encoder.conv_in.weight, full.vae.encoder.conv_in.weight)
    (folder / UNET).write_bytes(b"not read")
    assert load_checkpoint(folder, dtype=torch.float16).sha256 == half.sha256


def test_only_the_precision_that_a_run_wants_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requested: list[Any] = []
    monkeypatch.setattr(layout, "list_repo_files", lambda *_, **__: [*WHOLE, "unet/config.json", "README.md"])
    monkeypatch.setattr(
        layout, "snapshot_download", lambda *_, **options: requested.append(options["allow_patterns"]) or tmp_path
    )
    for dtype in ("float32", "float16"):
        layout.resolve("owner/name", dtype=dtype)  # type: ignore[arg-type]
    assert requested == [["unet/config.json", WHOLE[0]], ["unet/config.json", WHOLE[1]]]


def test_an_index_that_names_other_files_is_refused(copy: Copy) -> None:
    folder = copy("sd1")
    weights = folder / UNET
    shard = weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    for name in ("../../elsewhere.safetensors", "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"):
        write_json(folder / f"{UNET}.index.json", {"weight_map": {"conv_in.bias": name}})
        with pytest.raises(CheckpointError, match=r"index.json: its weight_map names files that are not shards"):
            load_checkpoint(folder)
    names = {"metadata": {}, "weight_map": dict.fromkeys(load_file(shard), shard.name)}
    write_json(folder / f"{UNET}.index.json", names)
    assert load_checkpoint(folder).sha256 == fingerprint(folder)


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
    ("family", "damage", "message"),
    [
        ("sd1", remove("unet"), r"unet of .*: looked for unet/config.json; the folder holds model_index.json, sched"),
        ("sd1", remove("vae"), r"vae of .*: looked for vae/config.json"),
        ("sd1", remove("text_encoder"), r"text_encoder of .*: looked for model.safetensors .*; found nothing"),
        ("sd1", remove("text_encoder/config.json"), r"text_encoder.config.json: cannot be read as JSON"),
        (
            "sd1",
            remove("tokenizer"),
            r"tokenizer of .*: looked for vocab.json and merges.txt .*found nothing",
        ),
        ("sd1", remove("tokenizer/merges.txt"), r"tokenizer of .*; found special_tokens_map.json, token.*, vocab.json"),
        ("sdxl", remove("text_encoder_2"), r"text_encoder_2 of .*: looked for model.safetensors"),
        ("sdxl", remove("model_index.json"), r"looked for text_encoder and text_encoder_2 in model_index.json"),
        ("sdxl", with_config("model_index.json", text_encoder=[None, None]), r"refiner"),
        ("sd1", pickled("unet", Path(UNET).name), r"unet of .*; found config.json, .*\.bin\. Only safetensors"),
        ("sd1", pickled("vae", Path(VAE).name), r"vae of .*; found config.json, .*\.bin\. Only safetensors"),
        ("sd1", pickled("text_encoder", "model.safetensors"), r"text_encoder of .*; found config.json, model.bin"),
        ("sd1", cut_off(UNET), r"unet of .*: its files do not load"),
        ("sd1", cut_off(VAE), r"vae of .*: its files do not load"),
        ("sd1", cut_off(TEXT), r"text_encoder of .*: its files do not load"),
        ("sd1", cut_off("tokenizer/vocab.json"), r"tokenizer of .*: its files do not load"),
        ("sd1", without_weight(UNET, "conv_in.bias"), r"unet of .*: its files lack weights: conv_in.bias"),
        ("sd1", without_weight(VAE, "quant_conv.bias"), r"vae of .*: its files lack weights: quant_conv.bias"),
        ("sd1", without_weight(TEXT, LAYER_NORM), r"text_encoder of .*: its files lack weights: .*layer_norm2.bias"),
        ("sd1", with_config("unet/config.json", in_channels=9), r"unet/config.json: in_channels is 9; expected 4"),
        (
            "sd1",
            with_config("vae/config.json", latent_channels=16),
            r"vae/config.json: latent_channels is 16; expected 4",
        ),
        ("sd1", with_config("unet/config.json", _class_name="FluxTransformer2DModel"), r"is a FluxTransformer2DModel"),
        ("sd1", with_config("vae/config.json", _class_name="VQModel"), r"is a VQModel; looked for AutoencoderKL or"),
        (
            "sd1",
            with_config("unet/config.json", addition_embed_type="image"),
            r"addition_embed_type is \"image\"; expected",
        ),
        ("sd1", with_config("unet/config.json", sample_size=None), r"unet/config.json: sample_size is null"),
        ("sd1", with_config("unet/config.json", cross_attention_dim=64), r"unet of .*: its files do not load"),
        ("sd1", with_config("text_encoder/config.json", **T5), r"is a \['T5EncoderModel'\]; looked for CLIPTextModel"),
        ("sdxl", with_config("model_index.json", text_encoder_2=[None, None]), r"which go together"),
    ],
)
def test_damage_is_refused_with_the_name_of_the_part(
    family: str, damage: Callable[[Path], None], message: str, copy: Copy
) -> None:
    folder = copy(family)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_messages_distinguish_a_single_file_a_missing_folder_and_an_invalid_hub_id(
    checkpoints: dict[str, Path],
) -> None:
    with pytest.raises(CheckpointError, match=r"holds no unet .*; for a part of a diffusers folder, give that folder"):
        load_checkpoint(checkpoints["sd1"] / UNET)
    for name in ("/nowhere/at/all", "sd15", "a/b/c", "../sd/x"):
        with pytest.raises(CheckpointError, match=r"no such file or folder, and not a hub id \(owner/name\)"):
            load_checkpoint(name)


def test_the_message_for_an_unknown_hub_id_names_it_and_the_revision() -> None:
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: no such folder here, and no such repository"):
        load_checkpoint("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"nobody/nothing: .* at revision v2: "):
        load_checkpoint("nobody/nothing", revision="v2")


def test_a_hub_id_and_its_revisions_come_from_the_local_cache(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    for reference, commit, family in (("main", "a" * 40, "sd1"), ("v2", "b" * 40, "textless")):
        shutil.copytree(checkpoints[family], repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    latest = load_checkpoint("owner/name")
    assert (latest.name, latest.sha256) == ("owner/name", fingerprint(checkpoints["sd1"]))
    for revision in ("v2", "b" * 40):
        named = load_checkpoint("owner/name", revision=revision)
        assert (named.name, named.sha256) == (f"owner/name@{revision}", fingerprint(checkpoints["textless"]))
    with pytest.raises(CheckpointError, match="at revision v3"):
        load_checkpoint("owner/name", revision="v3")
