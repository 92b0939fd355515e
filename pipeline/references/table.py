"""retrieval.parquet in STATE: the images that were retrieved for each name, with their seeds."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from diffseg.references import Seed
from pipeline.references.retrieve import Candidate, unique_key

RETRIEVAL_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("rank", pa.int32()),
        ("shard", pa.string()),
        ("index", pa.int32()),
        ("key", pa.string()),
        ("score", pa.float32()),
        ("segment", pa.int32()),
        ("support", pa.float32()),
    ]
)
"""Columns of retrieval.parquet. An image that is a copy of another one of the name has neither segment nor support."""


def retrieval_file(
    names: Collection[str], ranked: Mapping[str, list[Candidate]], seeds: Mapping[str, Sequence[Seed]]
) -> bytes:
    """Return retrieval.parquet: the ranked images of each name, with their seeds.

    Args:
        names: The names.
        ranked: The images of each name, the best first.
        seeds: The seeds of each name.
    """
    rows = []
    for name in names:
        of_image = {seed.key: seed for seed in seeds[name]}
        for rank, candidate in enumerate(ranked[name]):
            seed = of_image.get(unique_key(candidate))
            rows.append(
                {
                    "name": name,
                    "rank": rank,
                    "shard": str(candidate.shard),
                    "index": candidate.row,
                    "key": candidate.key,
                    "score": -candidate.minus_score,
                    "segment": seed and seed.segment,
                    "support": seed and seed.support,
                }
            )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=RETRIEVAL_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
