"""The configuration of a model of open_clip: which values are accepted before anything is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from diffseg.model.config_fields import WIDTH
from diffseg.model.config_rules import Rule, Rules, boolean, check_config, integer, integers, number, off, one_of
from diffseg.model.layout import read_json

_OBJECT = Rule("supported", dict[str, Any], "an object")
_TRANSFORMER: Rules = {
    "width": integer(1, WIDTH),
    "mlp_ratio": number(0.1, 64),
    "ls_init_value": number(0, 1, optional=True),
}
CONFIG_FIELDS: Rules = {
    "model_cfg": _OBJECT,
    "preprocess_cfg": Rule("supported", dict[str, Any] | None, "an object, or null"),
}
MODEL_FIELDS: Rules = {
    "embed_dim": integer(1, WIDTH),
    "vision_cfg": _OBJECT,
    "text_cfg": _OBJECT,
    "quick_gelu": boolean(),
    "custom_text": boolean(),
    "init_logit_bias": number(-1e3, 1e3, optional=True),
    "multimodal_cfg": off("models that write captions are not supported"),
}
VISION_FIELDS: Rules = {
    **_TRANSFORMER,
    "layers": integers(1, 128, items=4, shortest=4, scalar=True),
    "head_width": integer(1, WIDTH),
    "image_size": integer(1, 2048),
    "patch_size": integer(1, 256, optional=True),
    "attentional_pool": off("models that pool by several queries are not supported", False),
    # A name in the catalogue of timm, and no place from which timm would fetch a model.
    "timm_model_name": Rule(
        "supported", Annotated[str, Field(pattern=r"^[\w.]{1,100}$")] | None, "the name of a model of timm"
    ),
    "timm_pool": one_of("avg", "token", "map", ""),
    "timm_proj": one_of("linear", "mlp", "none", "", None),
}
TEXT_FIELDS: Rules = {
    **_TRANSFORMER,
    "layers": integer(1, 128),
    "heads": integer(1, 256),
    "context_length": integer(3, 2048),
    "vocab_size": integer(1, 2**20),
    "hf_model_name": off("text encoders that open_clip takes from elsewhere are not supported", ""),
    "tokenizer_mode": off("this way of splitting texts is not supported", ""),
}


def read_config(path: Path) -> dict[str, Any]:
    """Read and check an open_clip_config.json.

    Returns:
        The configuration, which has a `model_cfg` with the three entries that every model has.

    Raises:
        CheckpointError: The file is not JSON, or a value is not accepted.
    """
    config = read_json(path)
    _require(path, config, CONFIG_FIELDS, ("model_cfg",))
    model = config["model_cfg"]
    _require(path, model, MODEL_FIELDS, ("embed_dim", "vision_cfg", "text_cfg"))
    check_config(path, model["vision_cfg"], VISION_FIELDS)
    check_config(path, model["text_cfg"], TEXT_FIELDS)
    return config


def _require(path: Path, config: dict[str, Any], rules: Rules, keys: tuple[str, ...]) -> None:
    """Check the values of an object, and that some keys are there."""
    check_config(path, dict.fromkeys(keys) | config, rules)
