"""References of names from the features of a run: what a name looks like, learned from many images."""
