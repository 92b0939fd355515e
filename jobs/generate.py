"""Generate images from prompts, with label maps from the attention of their generation, and write both to OUT.

PROMPTS is a text file with a prompt on each line, or a CSV, JSON lines or Parquet file with the columns prompt, classes
and count. Without PROMPTS, each of --names takes the place of the {} in --template. OUT is a run like that of `diffseg
label`, whose images are in its rows, so that `diffseg train`, `export`, `report` and `evaluate` need no source.
After a stop or a kill at any moment, the same command continues where the run stopped.

Exit codes:
  0: every shard is done.
  1: some shards failed, or more prompts could not be used than --allowed-failures permits.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import tyro

from diffseg.generation.settings import GenerationSettings
from diffseg.settings import Dtype
from jobs.common import OK, SOME_FAILED, guarded, storage_options
from jobs.label import REGISTRY, has_failed, show_run
from pipeline.generation.prompts import PromptSource
from pipeline.generation.settings import GenerateSettings, ImageFormat
from pipeline.readers.names import NameSettings
from pipeline.settings import RunSettings, WorkerSettings


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """The flags of `diffseg generate`."""

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPTS] OUT")]
    """File or URL of prompts, with the ending .txt, .csv, .jsonl, .ndjson or .parquet; and the folder or URL to write
    to, which receives labels/, commits/ and run.json."""
    names: tuple[str, ...] = ()
    """Vocabulary, such as dog,cat. The first name is class 1. A prompt whose row lists no classes gets the names
    that occur in it, so a text file needs this flag. Default: the classes that PROMPTS lists, in their order."""
    name_words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further words for names as a JSON object, such as {"person": ["man", "woman"]}: a prompt with one of them
    mentions the name."""
    template: str = PromptSource.template
    """Without PROMPTS: the prompt for each name. The name takes the place of the {}."""
    count: int = PromptSource.count
    """Number of images for each prompt whose row gives no count."""
    seed: int = 0
    """Seed of the run. The seed of each image follows from it and from the key of its row."""
    model: str = "tiny-text"
    """tiny-text, which is embedded in this program, or a Stable Diffusion model, as for `diffseg label`."""
    revision: str | None = None
    """Branch, tag or commit, if the model is a hub id."""
    vae: str | None = None
    """Autoencoder to use instead of the model's own: a folder, hub id or URL."""
    dtype: Dtype | Literal["auto"] = "auto"
    """Type of the model's weights, as for `diffseg label`."""
    image_format: ImageFormat = "png"
    """How images are stored. png and webp are lossless; jpeg is smaller."""
    format: Literal["parquet", "parquet,webdataset"] = "parquet"
    """parquet, or parquet,webdataset to write WebDataset tars as well."""
    images_per_shard: int = 64
    """Number of images in a shard. A worker gets one shard at a time, and repeats it after a kill."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint, for PROMPTS, OUT and the URL of a model.
    The environment variables of the store are safer, because everybody can read a command line."""
    allowed_failures: float | None = None
    """Share of images that may fail, 0 to 1; above it the exit code is 1. Default: 0.1."""
    json: bool = False
    """Print the summary as JSON."""
    generation: Annotated[GenerationSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=GenerationSettings)
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)

    def settings(self) -> GenerateSettings:
        """Return what determines the rows."""
        return GenerateSettings(
            model=self.model,
            revision=self.revision,
            vae=self.vae,
            dtype=self.dtype,
            naming=NameSettings(names=self.names, name_words=self.name_words),
            format=self.format,
            samples_per_shard=self.images_per_shard,
            generation=self.generation,
            seed=self.seed,
            image_format=self.image_format,
        )


def parse(argv: list[str]) -> tuple[GenerateCommand, str | None, str]:
    """Parse the flags of `diffseg generate`. Returns them with PROMPTS, None if it is left out, and OUT."""
    parse_words = partial(
        tyro.cli,
        GenerateCommand,
        prog="diffseg generate",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=REGISTRY,
    )
    # A positional argument with several words would end at the first flag between them.
    command, further = parse_words(args=argv, return_unknown_args=True)
    if len(further) > 1 or any(word.startswith("-") for word in further):
        parse_words(args=argv)  # prints the message about an unknown argument
    return (command, command.place, further[0]) if further else (command, None, command.place)


def _generate(argv: list[str]) -> int:
    command, prompts, out = parse(argv)
    from pipeline.executor.generate import generate_run  # imported here to keep --help fast: ray takes seconds

    options = storage_options(command.storage_options)
    make_run = partial(
        generate_run,
        PromptSource(url=prompts, template=command.template, count=command.count),
        out,
        settings=command.settings(),
        worker=command.worker,
        run=command.run,
        source_options=options,
        out_options=options,
    )
    summary = show_run(make_run, command.run, as_json=command.json)
    return SOME_FAILED if has_failed(summary, command.allowed_failures) else OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg generate` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _generate(arguments))


if __name__ == "__main__":
    sys.exit(main())
