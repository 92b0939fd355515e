"""Scores of the rows of a run that need no ground truth, and the choice of the rows to keep (`diffseg filter`)."""
