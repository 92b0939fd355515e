"""Shards in, label shards out: storage, Ray and commits around diffseg."""
