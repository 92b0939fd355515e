"""Tokenizers in a tokenizer.json, without the class that the folder names, which could be code of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffseg.model.layout import CheckpointError, read_json


def load_json_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder with a tokenizer.json.

    Raises:
        CheckpointError: Its files do not load, or it has no token for padding.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise CheckpointError(f"tokenizer of {folder}: its files do not load: {error}") from error
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no token for padding, with which the model was trained")
    wants_end = tokenizer_config(folder).get("add_eos_token")
    if wants_end and tokenizer("a").input_ids[-1:] != [tokenizer.eos_token_id]:
        tokenizer.add_eos_token = True  # which its own class, such as Gemma's, does by itself
    return tokenizer


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, empty if the file is missing."""
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}
