"""Affinity between positions, learned from the labels of a run."""
