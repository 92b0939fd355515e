"""Pictures of label maps, and plots."""
