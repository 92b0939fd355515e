"""Evaluation of the embedded models against baselines."""
