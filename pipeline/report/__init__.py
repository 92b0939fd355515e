"""A page to look at a run with: `write.py` writes it, label shard by label shard."""
