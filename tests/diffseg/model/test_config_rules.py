"""Hostile configurations of models: any value is loaded or refused early, by a message with the file and the key."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_checkpoints import TEXT, change_json, write_json
from small_clip import write_clip
from small_models import UNETS

from diffseg.clip.clip import load_clip
from diffseg.model.checkpoint import Checkpoint, load_checkpoint
from diffseg.model.config_fields import (
    CLIP_FIELDS,
    DIFFSEG_FIELDS,
    INDEX_FIELDS,
    TEXT_FIELDS,
    TINY_VAE_FIELDS,
    UNET_FIELDS,
    VAE_FIELDS,
    VISION_FIELDS,
    check_unet,
)
from diffseg.model.config_rules import Rules
from diffseg.model.layout import CheckpointError, read_json

Copy = Callable[[str], Path]

HUGE = (
    10**7,
    10**30,
    -1,
    0,
    1.5,
    float("inf"),
    float("nan"),
    True,
    "3",
    None,
    [],
    [10**7] * 4,
    [[[]]],
    {"a": 1},
    [2] * 10**4,
)
FILES: dict[str, Rules] = {
    "unet/config.json": UNET_FIELDS,
    "vae/config.json": VAE_FIELDS,
    "text_encoder/config.json": TEXT_FIELDS,
    "model_index.json": INDEX_FIELDS,
    "diffseg.json": DIFFSEG_FIELDS,
}
SECONDS = 30
"""Limit for one hostile file. It takes some tenths of a second, but tests run on busy machines."""

hostile_values = st.sampled_from(HUGE) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def hostile_folder(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(checkpoints["sd1"], tmp_path_factory.mktemp("hostile") / "sd1"))
    write_json(folder / "diffseg.json", {})
    return folder


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_configuration_loads_or_is_refused(data: st.DataObject, hostile_folder: Path) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    keys = st.sampled_from([*sorted(FILES[name]), "_class_name", "architectures", "dtype", "torch_dtype"])
    changes = data.draw(st.dictionaries(keys, hostile_values, min_size=1, max_size=3))
    path = hostile_folder / name
    before, message, started = path.read_text(), "", time.monotonic()
    try:
        change_json(path, **changes)
        assert isinstance(load_checkpoint(hostile_folder), Checkpoint)
    except CheckpointError as error:
        message = str(error)
    finally:
        path.write_text(before)
    assert len(message) < 2000
    assert time.monotonic() - started < SECONDS


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_whatever_a_unet_has_that_is_accepted_is_built_soon(data: st.DataObject) -> None:
    depth = st.sampled_from((1, 3, 24))
    config = {
        **json.loads(json.dumps(UNETS["sd1"])),
        "sample_size": 64,
        "in_channels": 4,
        "block_out_channels": [data.draw(st.sampled_from((32, 4096)))] * 4,
        "layers_per_block": data.draw(st.sampled_from((1, 8))),
        "transformer_layers_per_block": data.draw(depth | st.lists(depth, min_size=4, max_size=4)),
        "norm_num_groups": data.draw(st.sampled_from((8, 32, 7))),
    }
    started = time.monotonic()
    try:
        check_unet(Path("config.json"), config)
        with init_empty_weights():
            UNet2DConditionModel(**config)
    except ValueError:
        pass
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": 10**7}, r"layers_per_block is 10000000; expected .* from 1 to 8$"),
        (
            "unet/config.json",
            {"block_out_channels": [32, 64, 64, 10**9]},
            r"block_out_channels is .*10+\]; .* to 4096$",
        ),
        (
            "unet/config.json",
            {"block_out_channels": [8] * 10**4},
            r"block_out_channels is \[8, .*…; expected a list of",
        ),
        ("unet/config.json", {"cross_attention_dim": 10**9}, r"cross_attention_dim is 10+; .* from 1 to 8192$"),
        (
            "unet/config.json",
            {"layers_per_block": 8, "transformer_layers_per_block": 24},
            r"layers_per_block is 24; expected so few .* 512 in",
        ),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            r"addition_time_embed_dim is null; expected an integ",
        ),
        ("vae/config.json", {"layers_per_block": 10**7}, r"layers_per_block is 10000000; expected .* from 1 to 8$"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**7}, r"num_hidden_layers is 10000000; .* from 1 to 128$"),
        (
            "text_encoder/config.json",
            {"_attn_implementation": "kernels-community/x"},
            r"_attn_implementation is \"kern",
        ),
        (
            "text_encoder/config.json",
            {"hidden_size": 33},
            r"text_encoder of .*: no model can be built from config.json",
        ),
        ("model_index.json", {"text_encoder": "CLIPTextModel"}, r"text_encoder is \"CLIPTextModel\"; expected a list"),
        (
            "diffseg.json",
            {"resolution": 10**9},
            r"diffseg.json: resolution is 10+; expected an integer from 8 to 4096$",
        ),
        ("diffseg.json", {"tau": "much"}, r"diffseg.json: tau is \"much\"; expected a list of 1 to 100 numbers"),
        ("diffseg.json", {"method": ["rm"]}, r"diffseg.json: method is \[\"rm\"\]; expected a list of .* diffseg or"),
    ],
)
def test_bounds_are_named_with_file_key_and_value(name: str, changes: dict[str, Any], message: str, copy: Copy) -> None:
    folder = copy("sd1")
    write_json(folder / "diffseg.json", {})
    change_json(folder / name, **changes)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    "content", ["[" * 10**5, "[1, 2]", '{"a": ' * 10**4, "9" * 10**4, " " * 2**20 + "{}", "\0", ""]
)
def test_a_file_that_is_no_small_object_is_refused(content: str, copy: Copy) -> None:
    folder = copy("sd1")
    for name in FILES:
        before = (folder / name).read_text() if (folder / name).exists() else "{}"
        (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"{name}: (cannot be read as JSON|holds a|has \d+ bytes)"):
            load_checkpoint(folder)
        (folder / name).write_text(before)


def test_weights_that_no_file_holds_are_not_allocated(copy: Copy) -> None:
    folder = copy("sd1")
    save_file({"text_model.final_layer_norm.bias": torch.zeros(1)}, folder / TEXT, metadata={"format": "pt"})
    change_json(folder / "text_encoder" / "config.json", hidden_size=8192, num_hidden_layers=128)
    with pytest.raises(
        CheckpointError, match=r"config.json: describes \d{11} weights, but the files .* have \d+ bytes"
    ):
        load_checkpoint(folder)


def test_a_clip_has_bounds_too(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    before = read_json(folder / "config.json")
    for key, changes, message in (
        ("text_config", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000"),
        ("vision_config", {"hidden_size": 10**9}, "hidden_size is 10"),
        ("vision_config", {"num_hidden_layers": 128}, "describes .* weights, but"),
        ("vision_config_dict", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000"),
    ):
        write_json(folder / "config.json", before | {key: before.get(key, {}) | changes})
        with pytest.raises(CheckpointError, match=message):
            load_clip(folder)


@settings(deadline=None, max_examples=40)
@given(
    key=st.sampled_from(sorted({*CLIP_FIELDS, *VISION_FIELDS})),
    value=hostile_values,
    rules=st.sampled_from((UNET_FIELDS, VAE_FIELDS, TINY_VAE_FIELDS, TEXT_FIELDS, VISION_FIELDS, CLIP_FIELDS)),
)
def test_a_rule_never_raises(key: str, value: object, rules: Rules) -> None:
    for rule in rules.values():
        assert rule.accepts(value) in (True, False)
