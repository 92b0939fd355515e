"""The embedded checkpoints, the recipe that trains them, and their evaluation."""
