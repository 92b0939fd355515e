"""Label maps of a run in the formats of other tools, a format a module: `write.py` has their list."""
