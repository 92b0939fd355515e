"""`python -m node_worker URL`: find the weights of a model as a worker does, and print where they are, as JSON."""

from __future__ import annotations

import json
import sys
import time

from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.weights import find_weights

if __name__ == "__main__":
    started = time.perf_counter()
    weights = find_weights(LabelSettings(model=sys.argv[1]), Storage(url="."))
    seconds = time.perf_counter() - started
    json.dump({"folder": str(weights.model), "sha256": weights.fingerprint(), "seconds": seconds}, sys.stdout)
