"""Scores of a label map against ground truth, and baselines."""
