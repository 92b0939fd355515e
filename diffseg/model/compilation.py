"""Compile the VAE encoder and the UNet's transformer blocks with torch.compile.

A compiled block runs as fewer kernels. On an H200, the pass of Stable Diffusion then took two thirds of its time
(docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.attention.layers import transformer_blocks

RECOMPILE_LIMIT = 64
"""Graphs that torch may compile from the code of the blocks: one for each width, kind of pass and size of batch."""


def compile_model(vae: Any, unet: UNet2DConditionModel, *, backend: str = "inductor") -> None:
    """Compile a model in place. torch does the work in the first pass, and again for batches of another size.

    Each transformer block is one graph without breaks, as diffusers' `compile_repeated_blocks(fullgraph=True)` makes
    it: what records attention is an operator that the graph calls. The last block stays as it is, because its
    attention ends the pass by an exception, which a graph cannot raise.

    The compiled code is kept in `TORCHINDUCTOR_CACHE_DIR`, a folder of this user (`diffseg.private_folder`), so that
    the workers of one node share it.

    Args:
        vae: The autoencoder.
        unet: The UNet.
        backend: A backend of torch.compile; tests use one that needs no compiler.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    vae.encoder.compile(backend=backend)
    for block in transformer_blocks(unet)[:-1]:
        block.module.compile(fullgraph=True, backend=backend)
