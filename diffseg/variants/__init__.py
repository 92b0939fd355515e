"""Variants of an image by noise, and what the correlation of its positions over them tells."""
