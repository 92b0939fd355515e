"""Scores of a run's labels against ground truth."""
