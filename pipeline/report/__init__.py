"""The report page of a run; `write.py` writes it, one label shard at a time."""
