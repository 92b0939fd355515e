"""Image bytes to pixels, and pixels to the input of the model."""
