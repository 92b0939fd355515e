"""Images generated from prompts, with label maps from the attention of their sampling (after DiffuMask, ICCV 2023)."""
