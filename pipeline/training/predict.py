"""Label images with a trained network into MODEL/labels, as `diffseg label SRC MODEL/labels --network MODEL` does."""

from __future__ import annotations

from rich.console import Console

from pipeline.errors import RunRefused
from pipeline.executor.driver import label_run
from pipeline.executor.summary import RunSummary
from pipeline.networks.segmenter import NetworkSegmenter
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage

__all__ = ["NetworkSegmenter", "predict"]


def predict(model: Storage, source: str, out: Storage, *, console: Console | None = None) -> RunSummary:
    """Label all samples of SRC with a trained network, in this process.

    Shards that are done and whose source has not changed are kept, and shards whose source is gone are removed.

    Args:
        model: MODEL, with the trained network.
        source: SRC, a folder, glob or URL of images.
        out: OUT, where the labels are written.
        console: Where to show the progress; None shows nothing.

    Raises:
        RunRefused: OUT holds labels of another network, of another SRC, or of a version that wrote no class ids.
        SourceError: MODEL holds no trained network, or SRC no images.
    """
    try:
        return label_run(
            source,
            out.url,
            settings=LabelSettings(network=model.url),
            worker=WorkerSettings(),
            run=RunSettings(no_ray=True),
            source_options=model.options,
            out_options=out.options,
            console=console,
        )
    except RunRefused as error:
        raise RunRefused(
            f"{out.redacted}: holds labels of another network, of other images or of an earlier version; delete it, or "
            f"label into another folder with `diffseg label IMAGES OUT --network MODEL` ({error})"
        ) from error
