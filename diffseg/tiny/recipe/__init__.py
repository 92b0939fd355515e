"""Training of the embedded models, from generated scenes to exported checkpoints."""
