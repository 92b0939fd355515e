"""Training on the labels of a run: segmentation networks, with or without Ray, and affinity for the frozen model."""
