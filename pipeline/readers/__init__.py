"""Shards and samples from tars, Parquet files and image folders."""
