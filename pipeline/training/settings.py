"""Settings of a training, one dataclass a component. Light to import: the command line is made of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["segments", "classes"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All that determines the network, with the run, the number of workers and the library versions."""

    target: Target = "segments"
    """segments: whether pixels belong together, which needs no names; classes: the class of each pixel, of a run with
    names."""
    steps: int = 2000
    """Of the optimiser; all workers make each one together."""
    batch_size: int = 8
    """Images a step on each worker."""
    size: int = 256
    """Side of the square crops in pixels, a multiple of 32."""
    learning_rate: float = 3e-3
    """At its highest, after the first twentieth of the steps; it falls along half a cosine."""
    width: int = 24
    """Channels of the network's finest level, a multiple of 8; its deepest has eight times as many."""
    confidence: float = 0.0
    """Train on images at least so confident, 0 to 1."""
    segment_confidence: float = 0.0
    """Pixels of less confident segments are ignored, 0 to 1."""
    seed: int = 0
    """Of weights, orders, crops and sampled pixels."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.width) < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"steps {self.steps}, batch size {self.batch_size}, width {self.width}, learning rate "
                f"{self.learning_rate}: expected 1 or more of each, and a rate above 0"
            )
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size {self.size}: expected a multiple of 32 pixels")
        if self.width % 8:
            raise ValueError(f"width {self.width}: expected a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class TrainRunSettings:
    """How a training is carried out."""

    workers: int = 1
    """Processes that share each step, one a GPU with --use-gpu; the batch grows with them."""
    use_gpu: bool = False
    """Train on GPUs."""
    no_ray: bool = False
    """Train in this process, without Ray."""
    address: str | None = None
    """Of a Ray cluster, or local; default: the one that Ray finds, else a local Ray on this machine."""
    threads: int = 1
    """CPU threads of each worker, on which the last bits of the weights depend."""
    loaders: int = 0
    """Processes beside each worker that read and decode; 0: the worker itself."""
    save_every: int = 100
    """Steps between checkpoints: what a kill can cost."""

    def __post_init__(self) -> None:
        if min(self.workers, self.threads, self.save_every) < 1 or self.loaders < 0:
            raise ValueError(
                f"workers {self.workers}, threads {self.threads}, save every {self.save_every}, loaders "
                f"{self.loaders}: expected 1 or more of each, of loaders 0 or more"
            )
        if self.no_ray and self.workers > 1:
            raise ValueError(f"{self.workers} workers without Ray: this process is one; leave out --no-ray")
