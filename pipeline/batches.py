"""What labelling and generating do with the model of a run: they give it batches, and tell its errors from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from diffseg.devices import out_of_memory
from pipeline.errors import ModelFailed

Item = TypeVar("Item")


def batches_of(items: Iterable[Item], size: int, *, needs_model: Callable[[Item], bool]) -> Iterator[list[Item]]:
    """Group items, in order, until `size` of them need the model. The others do not wait for a batch to fill.

    Args:
        items: The items.
        size: Largest number of items of a batch that need the model, at least 1.
        needs_model: Returns whether the model works on an item. The other items only keep their place in the order.
    """
    batch: list[Item] = []
    count = 0
    for item in items:
        batch.append(item)
        count += needs_model(item)
        if count in (0, size):
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


@contextmanager
def model_errors() -> Iterator[None]:
    """Raise ModelFailed in place of an error of the model, so that its type differs from those of the shard.

    Errors of full memory stay as they are, since a smaller batch may help.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or out_of_memory(error):
            raise
        raise ModelFailed(f"the model failed at a batch: {type(error).__name__}: {error}") from error
