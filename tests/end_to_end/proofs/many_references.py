"""Seconds and memory of `diffseg fit references` over planted rows: 100,000 images with 10 segments each.

The label shards are written to a folder, and references of 100 names are learned from them in another process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.rows import schema_of
from pipeline.output.writer import LABELS_FOLDER, METADATA_KEY
from pipeline.readers.names import NameSettings
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

SEGMENTS, NAMES, ROWS = 10, 100, 2000
"""Segments of an image, names of the run, and rows of a label shard."""
FINGERPRINT = "0123456789abcdef"


def write_planted(out: Path, images: int) -> None:
    """Write OUT of a run with features and with three labels for each image."""
    generator, storage = np.random.default_rng(0), Storage(url=str(out))
    tag = tag_of(FINGERPRINT, "")
    schema = schema_of(features=True).with_metadata({METADATA_KEY: json.dumps({"tag": tag})})
    (out / LABELS_FOLDER).mkdir(parents=True)
    features = (generator.standard_normal((ROWS * SEGMENTS, 256)) / 20).astype("<f2")
    for number in range(images // ROWS):
        shard, features = f"{number:05}", np.roll(features, 1, axis=1)
        rows = [
            {
                "key": f"{shard}/{index}",
                "shard": shard,
                "index": index,
                "status": "ok",
                "n_segments": SEGMENTS,
                "segments": [{"id": segment, "area": 6} for segment in range(SEGMENTS)],
                "meta": json.dumps({"labels": generator.integers(0, NAMES, 3).tolist()}),
                "image_feature": features[index].tobytes(),
                "segment_features": features[index * SEGMENTS :][:SEGMENTS].tobytes(),
            }
            for index in range(ROWS)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / LABELS_FOLDER / f"{shard}.parquet")
        write_commit(
            storage,
            Commit(
                shard=shard,
                state="done",
                fingerprint=FINGERPRINT,
                attempt=1,
                inputs="",
                rows=ROWS,
                counts={"ok": ROWS},
            ),
        )
    naming = NameSettings(names=tuple(f"name {number}" for number in range(NAMES)), labels_field="labels")
    manifest = Manifest(
        source="gone",
        settings=LabelSettings(features=True, naming=naming).plain(),
        model_sha256="",
        resolved={"timestep": 1, "resolution": 64, "features": []},
        environment={},
        fingerprint=FINGERPRINT,
        shards=images // ROWS,
    )
    write_manifest(storage, manifest)


def main() -> None:
    """Print the seconds and the memory of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000, help=f"images of the run, a multiple of {ROWS}")
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        out, state = Path(folder) / "out", Path(folder) / "state"
        write_planted(out, images)
        started = time.perf_counter()
        command = [sys.executable, "-m", "jobs.fit", "references", str(out), str(state), "--json", "--no-ray"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(f"{images * SEGMENTS:,} segments of {images:,} images: {seconds:.1f} s, at most {peak:.0f} MiB")


if __name__ == "__main__":
    main()
