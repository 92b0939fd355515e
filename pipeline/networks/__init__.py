"""Segmentation networks that were trained on label maps: their definition, their files, and labelling with them."""
