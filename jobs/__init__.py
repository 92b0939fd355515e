"""One module a command: what `ray job submit` runs and what the `diffseg` command calls."""
