"""What tests of models in stores share."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from model_stores import upload

from diffseg.model.layout import TINY
from pipeline.storage import Storage
from pipeline.weights import CACHE


@pytest.fixture
def node_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache of a node that may contact stores."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model_store(tmp_path: Path) -> Storage:
    """The embedded checkpoint in a store, beside files that are not needed."""
    store = Storage(url=f"memory://{tmp_path.name}/sd")
    upload(TINY, store)
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "a/b/c", "x"):
        store.write_bytes(name, b"not needed")
    return store
