"""CLIP models of several layouts, and the scores of names at every position of an image."""
