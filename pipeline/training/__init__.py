"""Training on the labels of a run: segmentation networks, with or without Ray, and affinity for the frozen model."""

from diffseg.private_folder import use_private_torch_cache

use_private_torch_cache()
