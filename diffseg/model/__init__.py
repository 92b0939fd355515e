"""Checkpoints, the UNet's pass and prompts."""

from diffseg.private_folder import use_private_torch_cache

use_private_torch_cache()
