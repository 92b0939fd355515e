"""Models of open_clip. The tests with a network need the extra open-clip, and torchvision beside it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_checkpoints import change_json, write_json
from small_clip import write_clip
from small_siglip import WORDS, write_word_tokenizer

from diffseg.clip.clip import load_clip
from diffseg.clip.layout import MEAN
from diffseg.clip.open_clip_config import read_config
from diffseg.clip.text_model import load_text_model
from diffseg.model.files import CLIP_FILES, OPEN_CLIP_FILES, clip_files, fingerprint
from diffseg.model.layout import CheckpointError, resolve_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def timm_config(name: str, pool: str, **fields: Any) -> dict[str, Any]:
    vision = {"timm_model_name": name, "timm_model_pretrained": True, "timm_pool": pool, "timm_proj": None}
    return {
        "embed_dim": 24,
        "vision_cfg": {**vision, "image_size": 64, **fields},
        "text_cfg": TEXT,
        "custom_text": True,
    }


VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "mobileclip": timm_config("fastvit_mci0", "avg"),
    "token": timm_config("vit_tiny_patch16_224", "token", image_size=224),
    "pooling head": timm_config("vit_tiny_patch16_224", "map", image_size=224) | {"init_logit_bias": -10},
    "eva": timm_config("eva02_tiny_patch14_224", "token", image_size=224),
}
PATCHES = {"transformer": 8, "resnet": 32, "mobileclip": 32, "token": 16, "pooling head": 16, "eva": 14}


@pytest.fixture
def installed() -> None:
    """Skip a test without the extra."""
    try:
        importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"open_clip does not load: {error}")


def write_open_clip(folder: Path, config: dict[str, Any]) -> Any:
    """Write a model with random weights in the files of a published one, and return it."""
    from open_clip.model import CLIP, CustomTextCLIP

    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {"mean": [0, 0, 0]}})
    fields = {name: value for name, value in config.items() if name != "custom_text"}
    fields["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    model = (CustomTextCLIP if config.get("custom_text") else CLIP)(**fields).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim:
                weight.add_(torch.randn_like(weight) * 0.02)
        if config["vision_cfg"].get("timm_pool") == "map":
            head = model.visual.trunk.attn_pool.kv  # without keys, attention is uniform
            head.weight[: len(head.weight) // 2], head.bias[: len(head.bias) // 2] = 0, 0
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, weights_of(folder))
    return model


def weights_of(folder: Path) -> Path:
    return folder / "open_clip_model.safetensors"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_each_image_encoder_is_read_position_by_position(name: str, tmp_path: Path) -> None:
    """Dense features differ from the embedding of the image only in the mixing of the last layer."""
    model = write_open_clip(tmp_path, CONFIGS[name])
    clip = load_clip(tmp_path)
    side = CONFIGS[name]["vision_cfg"]["image_size"]
    prepared = clip.preprocess(torch.rand(2, 3, side, side) * 2 - 1)
    dense, values = clip.layout.dense(prepared), clip.layout.values(prepared)
    count = (side // PATCHES[name]) ** 2
    assert dense.shape == (2, count, 24)
    assert values.shape[:2] == (2, count)
    if name == "mobileclip":
        pooled = clip.layout.project(values.mean(dim=1, keepdim=True))[:, 0]
        torch.testing.assert_close(pooled, model.encode_image(prepared), rtol=0, atol=1e-5)
        torch.testing.assert_close(dense, clip.layout.project(values), rtol=0, atol=1e-5)
    elif name == "pooling head":  # its attention is uniform
        tokens = model.visual.trunk.forward_features(prepared)
        pooled = clip.layout.project(tokens[:, 1:].mean(dim=1, keepdim=True))[:, 0]
        torch.testing.assert_close(pooled, model.encode_image(prepared), rtol=0, atol=1e-5)
        torch.testing.assert_close(dense, attending_to_oneself(model.visual, prepared), rtol=0, atol=1e-5)
    elif name != "resnet":
        torch.testing.assert_close(dense, attending_to_oneself(model.visual, prepared), rtol=0, atol=1e-5)
    larger = clip.dense_features(torch.rand(1, 3, 2 * side, 2 * side) * 2 - 1)
    assert larger.shape == (1, 24, 2 * side // PATCHES[name], 2 * side // PATCHES[name])
    assert torch.isfinite(larger).all()


def attending_to_oneself(visual: Any, prepared: torch.Tensor) -> torch.Tensor:
    """Return the vectors of positions by the encoder's own code, whose last attention is masked to the diagonal."""
    trunk = getattr(visual, "trunk", None)
    last = visual.transformer.resblocks[-1] if trunk is None else trunk.blocks[-1]
    seen: dict[str, Any] = {}

    def keep(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen["states"], seen["options"] = arguments[0], options

    handle = last.register_forward_pre_hook(keep, with_kwargs=True)
    visual(prepared)
    handle.remove()
    states, rope = seen["states"], seen["options"].get("rope")
    mask = torch.zeros(states.shape[1], states.shape[1]).fill_diagonal_(1).log()
    if trunk is None:
        return (visual.ln_post(last(states, attn_mask=mask)) @ visual.proj)[:, 1:]
    tokens = last(states, attn_mask=mask) if rope is None else last(states, rope=rope, attn_mask=mask)
    normed = trunk.norm(tokens)[:, trunk.num_prefix_tokens :]
    if trunk.attn_pool is not None:
        normed = trunk.attn_pool(normed.flatten(0, 1)[:, None]).unflatten(0, normed.shape[:2])
    return visual.head(trunk.head(trunk.fc_norm(normed)))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["transformer", "mobileclip"])
@torch.no_grad()
def test_learnable_tokens_with_the_embedding_of_a_word_give_the_vector_of_the_text(name: str, tmp_path: Path) -> None:
    write_open_clip(tmp_path, CONFIGS[name])
    model = load_text_model(str(tmp_path))
    token = model.tokenize(["a red"])[0, 1:2]
    context = model.token_embedding(token).expand(5, -1)
    torch.testing.assert_close(
        model.vectors(["red", "blue"], context), model.encode(model.tokenize(["a a a a a red", "a a a a a blue"]), 5)
    )


@pytest.mark.usefixtures("installed")
@torch.no_grad()
def test_scores_are_the_models_own(tmp_path: Path) -> None:
    """The colour statistics come from the configuration; a bias makes the probabilities sigmoids."""
    model = write_open_clip(tmp_path, CONFIGS["mobileclip"] | {"init_logit_bias": -1.0})
    clip = load_clip(tmp_path)
    assert clip.layout.mean.flatten().tolist() == [0, 0, 0]
    probabilities = clip.probabilities(torch.rand(1, 3, 64, 64) * 2 - 1, [["cat"]])
    assert (probabilities > 0).all()
    import open_clip

    ids = open_clip.SimpleTokenizer(context_length=77)(["a photo of a cat."])
    torch.testing.assert_close(clip.layout.embed_texts(["a photo of a cat."]), model.encode_text(ids))
    assert clip.layout.bias == -1


@pytest.mark.usefixtures("installed")
@torch.no_grad()
def test_another_tokenizer_is_read_from_the_folder(tmp_path: Path) -> None:
    text = TEXT | {"context_length": 12, "vocab_size": len(WORDS) + 2, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize", "trust_remote_code": True}, "pool_type": "last"}
    model = write_open_clip(tmp_path, CONFIGS["transformer"] | {"text_cfg": text, "custom_text": True})
    with pytest.raises(CheckpointError, match=r"looked for tokenizer\.json; found"):
        load_clip(tmp_path)
    write_word_tokenizer(tmp_path, "T5Tokenizer")
    ids = torch.tensor([[WORDS.index("red") + 2, WORDS.index("cat") + 2, 1] + [0] * 9])
    torch.testing.assert_close(load_clip(tmp_path).layout.embed_texts(["Red cat!"]), model.encode_text(ids))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: weights_of(f).unlink(), r"looked for open_clip_model\.safetensors .* Only safetensors"),
    "cut off": (lambda f: weights_of(f).write_bytes(b"\0" * 100), r"open_clip_model\.safetensors: does not load"),
    "a weight": (
        lambda f: save_file({"logit_scale": torch.ones(10**7)}, weights_of(f)),
        r"do not fit open_clip_config\.json|its files lack weights",
    ),
    "larger": (
        lambda f: change_model(f, vision_cfg=VISION | {"layers": 100}),
        r"describes \d+ weights, but the files hold",
    ),
    "nonsense": (lambda f: change_model(f, nothing=1), r"no model can be built from open_clip_config\.json"),
}


def change_model(folder: Path, **changes: Any) -> None:
    path = folder / "open_clip_config.json"
    change_json(path, model_cfg=json.loads(path.read_text())["model_cfg"] | changes)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused(damage: str, tmp_path: Path) -> None:
    inflict, message = DAMAGES[damage]
    write_open_clip(tmp_path, CONFIGS["transformer"])
    inflict(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_clip(tmp_path)


def test_without_open_clip_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": CONFIGS["transformer"]})
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        CheckpointError, match=r"is a model of open_clip, .*pip install 'diffseg-pipeline\[open-clip\]'"
    ):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "hf-hub:somebody/model"}}, "timm_model_name is .* the name of a model"),
        ({"vision_cfg": {"layers": 10**9}}, "layers is 1000000000"),
        ({"vision_cfg": None}, "vision_cfg is null; expected an object"),
        ({"text_cfg": TEXT | {"hf_model_name": "xlm-roberta-base"}}, 'hf_model_name is "xlm-roberta-base"'),
        ({"text_cfg": TEXT | {"vocab_size": 10**9}}, "vocab_size is 1000000000"),
        ({"multimodal_cfg": {"layers": 1}}, "models that write captions are not supported"),
    ],
)
def test_a_configuration_beyond_the_bounds_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "open_clip_config.json"
    write_json(path, {"model_cfg": CONFIGS["transformer"] | changes})
    with pytest.raises(CheckpointError, match=message):
        read_config(path)
    write_json(path, {})
    with pytest.raises(CheckpointError, match="model_cfg is null; expected an object"):
        read_config(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configurations_are_accepted(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_cfg": CONFIGS[name], "preprocess_cfg": {"mean": list(MEAN)}})
    assert read_config(tmp_path / "config.json")["model_cfg"] == CONFIGS[name]


def test_a_folder_with_both_layouts_is_read_as_transformers(tmp_path: Path) -> None:
    """Its fingerprint is that of the files of transformers, as before open_clip was supported."""
    folder = write_clip(tmp_path / "both", layers=1)
    before = load_clip(folder).sha256
    write_json(folder / "open_clip_config.json", {})
    weights_of(folder).write_bytes(b"")
    assert clip_files(folder) is CLIP_FILES
    assert load_clip(folder).sha256 == before == fingerprint(folder, CLIP_FILES)
    (folder / "model.safetensors").unlink()
    assert clip_files(folder) is OPEN_CLIP_FILES
    assert resolve_clip(folder) == folder
