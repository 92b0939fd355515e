"""Settings of a run, one dataclass per component. The command line is made from them, so this module imports quickly.

The string under a field is the help text of its command-line flag.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from diffseg.model.files import CHECKPOINT_FILES, ModelFiles
from diffseg.settings import NAMING, Dtype, SegmenterSettings
from pipeline.readers.names import NameSettings
from pipeline.storage.redaction import redact
from pipeline.storage.urls import scheme
from pipeline.worker_pools import WorkerSpec, parse_worker_specs

Format = Literal["parquet", "webdataset"]

ADDED_METHOD_FIELDS = (
    *("clip_templates", "clip_window", "clip_stride"),
    *("clip_guide", "clip_guide_shift", "clip_guide_scale"),
    *("prompt", "background_words", "merge_names"),
    "ncut_on",
    *("variants", "variant_timestep", "covariance_segments", "covariance_above"),
)
"""Fields of the method that runs of earlier versions lack. At their defaults they stay out of run.json and of the
fingerprint, so that such runs can go on."""

ADDED_NAMING_FIELDS = ("name_words", "caption_parser", "synonyms")
"""Settings of names that runs of earlier versions lack; see `ADDED_METHOD_FIELDS`."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Everything that determines the labels, apart from what run.json records as the environment."""

    model: str = "tiny"
    """`tiny`, which is embedded in this program, or a Stable Diffusion model with 4 latent channels: a diffusers
    folder, a single .safetensors file in the original layout of SD 1.x, SD 2.x or SDXL, a hub id, or the URL of a
    folder such as s3://bucket/sd15. Each node copies the files of a URL once, into DIFFSEG_CACHE if it is set, else
    into ~/.cache/diffseg."""
    revision: str | None = None
    """Branch, tag or commit, if the model is a hub id."""
    vae: str | None = None
    """Autoencoder to use instead of the model's own, whose encoder takes most of the time: a folder, hub id or URL,
    such as madebyollin/taesd. It must have the same latents."""
    clip: str | None = None
    """CLIP that names segments in the stage clip: a folder, hub id or URL of a CLIP or SigLIP of transformers, such as
    openai/clip-vit-large-patch14, or, with diffseg-pipeline[open-clip], of a model of open_clip, such as MobileCLIP. No
    CLIP is embedded in this program."""
    affinity: str | None = None
    """File or URL of an affinity that `diffseg fit` wrote: of heads for the stage affinity, of features for the stage
    walk."""
    network: str | None = None
    """MODEL of `diffseg train`, a folder or URL: the network that was trained there labels the images instead of a
    Stable Diffusion model, with the names of its classes. Networks of the recipes denseclip and maskclip
    also accept other --names."""
    references: str | None = None
    """STATE of `diffseg fit references`, a folder or URL, for the stage references. Segments get its names, or only
    those of them that --names lists."""
    dtype: Dtype | Literal["auto"] = "float32"
    """Type of the model's weights. Attention is always float32. Where a model has files in several precisions, only
    those that suit this type are fetched and read. auto is the type of the run in OUT if there is one, else float32 on
    CPUs or where only some of the workers have a GPU, else bfloat16 or, on GPUs without it, float16."""
    method: SegmenterSettings = field(default_factory=SegmenterSettings)
    """How an image becomes a label map."""
    naming: NameSettings = field(default_factory=NameSettings)
    """Which names segments may get."""
    format: str = "parquet"
    """parquet, or parquet,webdataset to write WebDataset tars as well."""
    levels: bool = False
    """Store how the segments divide and merge at other thresholds as well, so that `diffseg recut` can change the
    granularity later. The label maps stay the same."""
    features: bool = False
    """Store one feature of the model's pass for each image and each segment, 512 bytes each, from which `diffseg fit
    references` learns what names look like. The label maps stay the same."""
    quality: bool = False
    """Store the columns within_rho and between_rho: how much positions of one segment, and of different segments,
    correlate over variants of the image by noise. A large gap is meant as a sign of a good label map; docs/quality.md
    says how good a sign. This costs one more pass of the UNet for each variant; the label maps stay the same."""
    include_image: bool = False
    """Store the source images in the WebDataset tars too."""
    image_field: str | None = None
    """Extension (tar) or column (Parquet) of the image, if a sample has several."""
    key_field: str | None = None
    """Column (Parquet) of the key of each row. Default: the first of key, __key__, id, image_id, file_name, filename,
    path and url, else the path in the image column. Where a column does not tell rows apart, the path or the row number
    is the key, and the summary says so."""
    samples_per_shard: int = 256
    """Number of image files of a folder that are grouped into one shard."""
    max_pixels: int = 2**26
    """Largest image that is decoded, in pixels. Larger images get the status too_large."""

    def __post_init__(self) -> None:
        if self.format not in ("parquet", "parquet,webdataset"):
            raise ValueError(f"format {self.format!r}: expected parquet or parquet,webdataset")
        if self.samples_per_shard < 1 or self.max_pixels < 1:
            raise ValueError(
                f"samples_per_shard {self.samples_per_shard}, max_pixels {self.max_pixels}: expected 1 or more for each"
            )
        if self.network is None:
            self._check_naming()
        else:
            self._check_network(self.network)
        for location in filter(None, (self.model, self.vae, self.clip, self.network)):
            # A secret in the URL would be written into run.json and every label shard, which name the model.
            if scheme(location) and redact(location) != location:
                raise ValueError(
                    f"{redact(location)}: a model's URL with a user name, a password or a query is refused; pass "
                    "credentials in the store's environment variables or in --storage-options"
                )
        if self.revision is not None and scheme(self.model):
            raise ValueError(f"revision {self.revision!r}: only a hub id has revisions, and {self.model} is a URL")

    def _check_network(self, network: str) -> None:
        """Refuse settings of a Stable Diffusion model and of the method, which would have no effect."""
        given = [
            name for name in ("revision", "vae", "clip", "affinity", "references") if getattr(self, name) is not None
        ]
        given += ["model"] * (self.model not in (LabelSettings.model, network))
        given += ["dtype"] * (self.dtype not in ("auto", "float32"))
        method, default = self.method.flat(), SegmenterSettings().flat()
        given += [name for name in method if method[name] != default[name]]
        given += ["levels"] * self.levels + ["features"] * self.features + ["quality"] * self.quality
        if given:
            raise ValueError(
                f"network {redact(network)}: takes the place of Stable Diffusion and of the method, so "
                f"{', '.join(given)} would have no effect; leave it out"
            )

    def _check_naming(self) -> None:
        stages = self.method.method
        if stages is not None and ("clip" in stages) != (self.clip is not None):
            raise ValueError(
                f"method {','.join(stages)}, clip {self.clip and redact(self.clip)}: the stage clip needs a CLIP; "
                "give both, the stage and its checkpoint (a folder, hub id or URL), or neither"
            )
        self._check_references()
        if self.clip is not None and not self.naming:
            raise ValueError(f"clip {redact(self.clip)} names segments: give names, or a caption field")
        names_segments = stages is not None and any(stage in NAMING for stage in stages)
        if stages is not None and names_segments and not self.naming and self.references is None:
            raise ValueError(f"method {','.join(stages)} names segments: give names, or a caption field")
        if stages is not None and self.naming and not names_segments:
            raise ValueError(
                f"method {','.join(stages)} names no segments, but names are given: add {' or '.join(NAMING)}"
            )
        naming = self.method.segment_names
        if naming.prompt == "caption" and self.naming.caption_field is None:
            raise ValueError("prompt caption: expected a caption field as well, whose text conditions the pass")
        if naming.background_words and naming.prompt == "names" and self.clip is None:
            raise ValueError(
                "background words stand beside the names: expected prompt empty or caption as well, or a CLIP"
            )

    def _check_references(self) -> None:
        stages, given = self.method.method, self.references is not None
        if stages is not None and ("references" in stages) != given:
            raise ValueError(
                f"method {','.join(stages)}, references {self.references and redact(self.references)}: the stage "
                "references needs the STATE of `diffseg fit references`; give both or neither"
            )
        if given and self.clip is not None:
            raise ValueError("clip and references both name segments: give one of them")
        if given and self.method.segment_names.background_words:
            raise ValueError(
                "background words have no effect beside references: leave them out, and use "
                "`diffseg fit references --background`"
            )

    def plain(self) -> dict[str, Any]:
        """Return all settings as plain values, as run.json and the fingerprint hold them, with a flat `method`."""
        added, default = set(ADDED_METHOD_FIELDS), SegmenterSettings().flat()
        method = {k: v for k, v in self.method.flat().items() if k not in added or v != default[k]}
        naming = dataclasses.asdict(self.naming)
        for name, value in dataclasses.asdict(NameSettings()).items():
            if name in ADDED_NAMING_FIELDS and naming[name] == value:
                del naming[name]
        plain = dataclasses.asdict(self) | {"method": method, "naming": naming}
        if self._places_cells_anew():
            plain["edges"] = 2
        if self.affinity is not None and self.method.attention.flip:
            plain["mirrored_affinity"] = 1  # earlier versions did not mirror it, and gave other labels
        for name in ("key_field", "network", "references", "levels", "features", "quality"):
            if plain[name] in (None, False):
                del plain[name]  # so that runs from before this setting keep their fingerprint
        return plain

    def _places_cells_anew(self) -> bool:
        """Return whether labels differ from those of earlier versions, whose runs are not to be mixed with new ones.

        Earlier versions applied thresholds before class maps were upsampled, so that objects shrank, and read some
        cells of a CLIP's own grid that lay beside a position.
        """
        method, stages = self.method, self.method.method or ()
        first = stages[1:2] if stages[:1] == ("affinity",) else stages[:1]
        has_threshold = max(method.segment_names.background_below, method.segment_names.ignore_below) > 0
        return (bool(first) and first[0] in NAMING and has_threshold) or (
            self.clip is not None and not method.clip.clip_smooth
        )

    @property
    def model_files(self) -> ModelFiles:
        """The files of the model that are fetched and digested."""
        return CHECKPOINT_FILES

    @property
    def known_dtype(self) -> Dtype:
        """The type of the weights. Raises ValueError if it is still to be chosen."""
        if self.dtype == "auto":
            raise ValueError("dtype auto: the type must be chosen before the model is read")
        return self.dtype

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats to write, as a tuple."""
        return ("parquet",) if self.format == "parquet" else ("parquet", "webdataset")


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker runs. These settings may change the last bits of a float; run.json records them as environment."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the model. auto uses cuda if the cluster or this machine has it, else cpu."""
    batch_size: int | Literal["auto"] = "auto"
    """Images in one pass of the model. Short batches are padded. auto is 1 on a CPU. On a GPU, `diffseg label` tries
    sizes until images/s stop rising or memory is short, and keeps the choice in DIFFSEG_CACHE, else in
    ~/.cache/diffseg; `diffseg generate` takes 8."""
    threads: int = 1
    """CPU threads that the model uses in each worker."""
    compile: bool = False
    """Compile the model with torch.compile before the first shard. This takes a worker about a minute, and pays on a
    GPU from some ten thousand images on. The workers of a node share the compiled code."""

    def __post_init__(self) -> None:
        if (self.batch_size != "auto" and self.batch_size < 1) or self.threads < 1:
            raise ValueError(f"batch size {self.batch_size}, threads {self.threads}: expected 1 or more for each")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is carried out. None of these settings changes a label."""

    workers: int | str | None = None
    """Number of workers, or MIN:MAX. With MIN:MAX the run requests up to MAX workers while shards wait, so that an
    autoscaler adds nodes, and fails if fewer than MIN become ready. Several pools: "1:8 gpus=1
    ray.io/accelerator-type=A100; 0:32 gpus=0.5 batch=4", where other keys with a number are Ray resources and other
    keys with a word are labels of Ray nodes. Default: one worker per GPU of the cluster, else one per `threads` CPU
    cores."""
    no_ray: bool = False
    """Label in this process, without Ray, other workers or timeouts."""
    address: str | None = None
    """Address of a Ray cluster, HOST:PORT, or `auto` or `local`. Default: RAY_ADDRESS, else a cluster that the same
    user started with `ray start` on this machine, else a private Ray."""
    gpus_per_worker: float = 1.0
    """Ray GPUs of each worker, if the device is cuda. A fraction lets workers share a GPU."""
    shard_timeout: float = 7200.0
    """Seconds that one attempt at a shard may take. After that its worker is killed and the shard is retried."""
    start_timeout: float = 600.0
    """Seconds that a worker may take to load its model. They count from the moment at which Ray has given the worker a
    place on a node."""
    place_timeout: float = 600.0
    """Seconds that the nodes of the cluster may lack the resources for a worker, or for MIN of them, after which the
    run fails. Allow hours where an autoscaler may not get machines at once (inf: without a limit). The run always waits
    without a limit while other jobs use the resources."""
    store_timeout: float = 300.0
    """Seconds during which requests to a store that does not answer are retried."""
    retry_failed: bool = False
    """Retry only shards whose failure was transient (a store that did not answer, a lost worker, or a file that could
    not be opened), and failed shards whose source has changed since."""
    strict: bool = False
    """Refuse to start if SRC holds anything that would be left out, except hidden files. Without this flag such files
    are counted by kind in the summary, in run.json and by `diffseg status`."""
    keep_removed: bool = False
    """Keep the rows of images that are no longer in SRC. Without this flag the run removes them at its end."""
    ignore_source_changes: bool = False
    """Keep the labels of files that were replaced under the same name. Without this flag files with another size,
    modification time or tag of the store are labelled again."""
    log_format: Literal["text", "json"] = "text"
    """Format of the log lines that workers write to Ray's session logs and the driver to standard error. With json,
    each line is an object with shard, attempt, host and process, each shard gets a line, and there is no progress
    bar."""
    overwrite: bool = False
    """Delete the earlier run in OUT and start over."""

    def __post_init__(self) -> None:
        parse_worker_specs(self.workers, WorkerSpec())  # raises ValueError before anything has started
