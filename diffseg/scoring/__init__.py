"""Scores of label maps against ground truth, and baselines without a model."""
