"""The embedded checkpoint, and the recipe that makes it again."""
