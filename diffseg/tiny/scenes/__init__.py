"""Generated scenes with exact masks, for training and scoring."""
