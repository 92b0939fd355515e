"""What the embedded models are worth."""
