"""Runs the shards on workers: Ray actors, or this process."""
