"""The driver of `diffseg generate`: it turns prompts into shards of requests, and runs them as `diffseg label` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from pipeline.executor.auto_settings import with_dtype_of_run
from pipeline.executor.driver import run_job
from pipeline.executor.models import LoadedModel
from pipeline.executor.protocol import Job, Worker
from pipeline.executor.summary import RunSummary
from pipeline.executor.worker import LabelWorker
from pipeline.generation.prompts import PromptSource, read_prompts
from pipeline.generation.requests import entries_of, shards_of_entries, template_entries, vocabulary_of
from pipeline.generation.settings import GenerateSettings
from pipeline.output.commit import Commit
from pipeline.output.manifest import read_manifest
from pipeline.readers.samples import Shard
from pipeline.settings import RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage
from pipeline.weights import find_weights

if TYPE_CHECKING:
    from diffseg.generation.generator import Generator
    from pipeline.label import ImageSegmenter

GPU_BATCH = 8
"""Images that a GPU generates at once for `--batch-size auto`; workers take fewer if memory runs out."""


class GenerateWorker(LabelWorker):
    """Loads the model once, then generates one shard of requests at a time."""

    def _load_model(self, job: Job) -> LoadedModel:
        if job.worker.compile:
            raise ValueError("compile: a model that generates images is not compiled; leave it out")
        self.generator = load_generator(job)
        generator, settings = self.generator, cast(GenerateSettings, job.settings)
        checkpoint = generator.backbone.checkpoint
        resolved = {
            "tau": list(checkpoint.tau),
            "timestep": checkpoint.timestep,
            "resolution": generator.side,
            "method": list(settings.generation.method),
            "scheduler": type(generator.sampler.scheduler()).__name__,
        }
        return LoadedModel(
            segmenter=cast("ImageSegmenter", generator),  # the base class uses only its batch size
            sha256=checkpoint.sha256,
            resolved=resolved,
            about={"method": ",".join(settings.generation.method), "context": "prompt of the image"},
            environment={"attention": generator.backbone.recorder.backend.name},
        )

    def _batch_size(self, model_sha256: str) -> int:
        if self.job.worker.batch_size != "auto":
            return self.job.worker.batch_size
        return GPU_BATCH if self.job.worker.device.startswith("cuda") else 1

    def _label(self, shard: Shard, attempt: int) -> Commit:
        import torch

        from pipeline.generation.shard import generate_shard

        torch.set_num_threads(self.job.worker.threads)  # see LabelWorker
        self._samples = 0
        return generate_shard(
            shard,
            generator=self.generator,
            settings=cast(GenerateSettings, self.job.settings),
            metadata=self._metadata(),
            out=self.job.out,
            attempt=attempt,
            threads=self.threads,
            on_sample=self._count_sample,
            fence=self._fence(),
        )


def load_generator(job: Job) -> Generator:
    """Load the model of a job with its text encoders and its decoder.

    Raises:
        CheckpointError: The checkpoint cannot be used (a ValueError).
        ValueError: The settings do not fit the checkpoint.
        OSError: The store of the checkpoint fails.
    """
    settings = cast(GenerateSettings, job.settings)
    weights = find_weights(settings, job.source)  # before the imports, which take seconds

    import torch

    from diffseg.devices import keep_freed_memory
    from diffseg.generation.generator import Generator
    from diffseg.model.backbone import Backbone
    from diffseg.model.checkpoint import load_checkpoint

    with weights.named():
        checkpoint = load_checkpoint(
            weights.model,
            vae=weights.vae,
            device=job.worker.device,
            dtype=getattr(torch, settings.known_dtype),
            text=True,
            decoder=True,
        )
    keep_freed_memory()
    return Generator(Backbone(checkpoint), settings.generation, segmenter=settings.method)


def generate_run(
    prompts: PromptSource,
    out: str,
    *,
    settings: GenerateSettings,
    worker: WorkerSettings,
    run: RunSettings,
    source_options: Mapping[str, Any] | None = None,
    out_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    worker_class: Callable[[], Worker] = GenerateWorker,
) -> RunSummary:
    """Generate the images of all prompts, with label maps, into OUT. Doing so again continues where it was stopped.

    Args:
        prompts: The prompts.
        out: OUT, a folder or URL.
        settings: What determines the rows. Without names, the vocabulary is that of the column classes of the prompts.
        worker: How a worker runs.
        run: How the run is carried out.
        source_options: Options for the stores of the prompts and of the model.
        out_options: Options for the store of OUT.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What OUT holds after the run.

    Raises:
        SourceError: The prompts cannot be read, or ask for nothing.
        ValueError: There are no names.
        RunRefused: OUT belongs to another run.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over OUT.
        OSError: A request of the driver to a store failed.
    """
    source = Storage(url=".", options=source_options, retry_timeout=run.store_timeout)
    target = Storage(url=out, options=out_options, retry_timeout=run.store_timeout)
    before = None if run.overwrite else read_manifest(target)
    settings, shards = plan_generation(prompts, settings, source)
    settings = cast(GenerateSettings, with_dtype_of_run(settings, before))
    return run_job(
        Job(settings=settings, worker=worker, source=source, out=target),
        shards,
        run=run,
        source=prompts.shown(source),
        before=before,
        console=console,
        worker_class=worker_class,
    )


def plan_generation(
    prompts: PromptSource, settings: GenerateSettings, store: Storage
) -> tuple[GenerateSettings, list[Shard]]:
    """Return the settings with the vocabulary of the run, and its shards.

    Raises:
        SourceError: The prompts cannot be read, or ask for nothing.
        ValueError: There are no names.
    """
    naming = settings.naming
    if prompts.url is None:
        if not naming.names:
            raise ValueError("without PROMPTS, expected --names, whose names replace the {} of --template")
        settings = dataclasses.replace(settings, template=prompts.template)
        entries = template_entries(naming, prompts.template, prompts.count)
    else:
        rows = read_prompts(prompts.url, store)
        if not naming.names:
            if not (names := vocabulary_of(rows)):
                raise SourceError(
                    f"{prompts.shown(store)}: lists no classes; give --names, which are then looked for in the "
                    "prompts, or add a column classes"
                )
            naming = dataclasses.replace(naming, names=names)
        entries = entries_of(rows, naming, prompts.count)
    settings = dataclasses.replace(settings, naming=naming)
    return settings, shards_of_entries(entries, settings.samples_per_shard)
