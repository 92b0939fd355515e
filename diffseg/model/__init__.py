"""Checkpoints, the UNet's pass, prompts and CLIP."""

from diffseg.private_folder import use_private_torch_cache

use_private_torch_cache()
