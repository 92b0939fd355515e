"""Images generated from prompts, with label maps: what is asked for, its division into shards, and a shard of rows."""
