"""Checkpoints, the UNet's pass, prompts and CLIP."""
