"""A labelling job on a Ray cluster."""
