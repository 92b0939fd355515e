"""Pictures of label maps, and helpers for plots."""
