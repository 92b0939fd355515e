"""The work of `diffseg filter`: to train the network of a fold, and to score the rows of a label shard.

Workers write their results below OUT/filter/parts, each file atomically, so doing a task again is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.filtering.agreement import cv_iou, main_class
from pipeline.filtering.settings import FoldSettings
from pipeline.output.commit import LabelShard
from pipeline.output.keep import SCORE_FIELDS, table_bytes
from pipeline.output.reader import label_rows
from pipeline.output.selection import RowSelection, split_of
from pipeline.output.source_images import read_source_images
from pipeline.readers.samples import Shard
from pipeline.storage import Storage
from pipeline.training.recipes.settings import Target
from pipeline.training.settings import TrainRunSettings

if TYPE_CHECKING:
    from diffseg import Segmentation
    from pipeline.networks.segmenter import NetworkSegmenter

SCORES = "scores"
"""Folder of the scores of label shards, below `FilterJob.parts`."""
PART_SCHEMA = pa.schema([*SCORE_FIELDS, pa.field("problem", pa.string())])
"""Scores of a label shard, and why a row has no cv_iou."""


@dataclass(frozen=True, kw_only=True)
class FilterJob:
    """Everything a worker needs to start.

    Attributes:
        settings: The networks of the folds.
        target: What the networks learn.
        out: OUT of the run.
        parts: Folder of the networks and scores, which is deleted once the table is written.
        images: Folder or URL of the source images, if they are no longer at the location in run.json.
        image_field: Image field of the run's SRC.
        generated: Whether the rows have a column `agree_iou`.
        device: Device of the networks.
        threads: CPU threads of each worker.
    """

    settings: FoldSettings
    target: Target
    out: Storage
    parts: Storage
    images: str | None
    image_field: str | None
    generated: bool
    device: str = "cpu"
    threads: int = 1

    def model(self, fold: int) -> Storage:
        """Return the folder of the network of a fold, as `diffseg train` writes MODEL."""
        return self.parts.at(f"{self.parts.url}/fold-{fold}")


@dataclass(frozen=True, kw_only=True)
class ScoreTask:
    """A label shard whose rows are scored.

    Attributes:
        shard: The label shard.
        source: Source shard with the images.
    """

    shard: LabelShard
    source: Shard


def score_path(shard: str) -> str:
    """Return the path of the scores of a label shard below `FilterJob.parts`."""
    return f"{SCORES}/{shard}.parquet"


class FoldWorker:
    """Trains the networks of folds, one after another, each on the rows of all other folds."""

    def __init__(self, job: FilterJob) -> None:
        self.job = job

    def collect(self, fold: int) -> str:
        """Train the network of a fold, from its last checkpoint if there is one, and return the number of the fold."""
        from pipeline.training.dataset import LabelDataset
        from pipeline.training.loop import train

        job = self.job
        settings = job.settings.train_settings(job.target)
        rows = RowSelection(where=job.settings.other_folds(fold))
        dataset = LabelDataset(
            job.out.url, settings.dataset(rows), images=job.images, rank=0, world_size=1, options=job.out.options
        )
        run = TrainRunSettings(no_ray=True, threads=job.threads)
        train(settings, run, dataset, job.model(fold), device=job.device)
        return str(fold)


class ScoreWorker:
    """Scores the rows of label shards, each row by the network that was not trained on it."""

    def __init__(self, job: FilterJob) -> None:
        import torch

        torch.set_num_threads(job.threads)
        self.job = job
        self._networks: dict[int, NetworkSegmenter] = {}

    def collect(self, task: ScoreTask) -> str:
        """Write the scores of a label shard, and return the shard's name."""
        columns = ["key", "index", "status", "height", "width", "mask", "segments", "confidence", "n_segments"]
        columns += ["agree_iou"] if self.job.generated else []
        stored = label_rows(self.job.out, task.shard, columns)
        rows = {row["index"]: row for row in stored if row["status"] == "ok"}
        scores = {index: _known_scores(task.shard, row) for index, row in rows.items()}
        for index, predicted in self._predictions(task, rows):
            if isinstance(predicted, str):
                scores[index]["problem"] = predicted
            else:
                network = self._network(self._fold(rows[index]))
                scores[index]["cv_iou"] = cv_iou(rows[index], predicted, network.class_names)
        table = pa.Table.from_pylist(list(scores.values()), PART_SCHEMA)
        self.job.parts.write_bytes(score_path(task.shard), table_bytes(table, {}))
        return str(task.shard)

    def _predictions(
        self, task: ScoreTask, rows: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[tuple[int, Segmentation | str]]:
        """Yield the index of each row with its prediction, or with the reason why it has none."""
        waiting: dict[int, list[tuple[int, np.ndarray]]] = {}
        keys = {index: row["key"] for index, row in rows.items()}
        sizes = {index: (row["height"], row["width"]) for index, row in rows.items()}
        for index, image in read_source_images(task.source, keys, self.job.out, self.job.image_field, sizes):
            if isinstance(image, str):
                yield index, image
                continue
            fold = self._fold(rows[index])
            batch = waiting.setdefault(fold, [])
            batch.append((index, image))
            if len(batch) == self.job.settings.batch_size:
                yield from self._predict(fold, waiting.pop(fold))
        for fold, batch in sorted(waiting.items()):
            yield from self._predict(fold, batch)

    def _predict(self, fold: int, batch: list[tuple[int, np.ndarray]]) -> Iterator[tuple[int, Segmentation | str]]:
        network = self._network(fold)
        results = network.launch([network.prepare(image) for _, image in batch]).results()
        for (index, _), result in zip(batch, results, strict=True):
            yield index, str(result) if isinstance(result, Exception) else result

    def _fold(self, row: Mapping[str, Any]) -> int:
        return self.job.settings.fold_of(split_of(row["key"]))

    def _network(self, fold: int) -> NetworkSegmenter:
        from pipeline.networks.segmenter import NetworkSegmenter

        if fold not in self._networks:
            model, job = self.job.model(fold), self.job
            self._networks[fold] = NetworkSegmenter.load(
                model.url, model.options, device=job.device, batch_size=job.settings.batch_size
            )
        return self._networks[fold]


def _known_scores(shard: LabelShard, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that are known without a network."""
    agree = row.get("agree_iou")
    return {
        "key": row["key"],
        "shard": str(shard),
        "index": row["index"],
        "class": main_class(row),
        "agree_iou": float(np.mean(agree)) if agree else None,
        "confidence": row["confidence"],
        "n_segments": row["n_segments"],
    }
