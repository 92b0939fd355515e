"""Images generated from prompts, with label maps: prompts, their division into shards, and the work on a shard."""
