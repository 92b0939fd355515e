"""Exports of a run to the formats of other tools: one module per format, listed in `write.py`."""
