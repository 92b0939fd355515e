"""The commands, one module each: `diffseg NAME` and `python -m jobs.NAME` (for `ray job submit`) run the same code."""
