"""Images in, label maps out: DiffSeg (CVPR 2024) on any Stable Diffusion checkpoint."""
