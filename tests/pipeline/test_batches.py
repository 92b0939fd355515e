"""How items are grouped into batches, and the types of the model's errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.batches import batches_of, model_errors
from pipeline.errors import ModelFailed


def test_a_batch_is_full_when_enough_of_its_items_need_the_model() -> None:
    batches = batches_of("..ABc.C.D..", 2, needs_model=str.isupper)
    assert ["".join(batch) for batch in batches] == [".", ".", "AB", "c", ".", "C.D", ".", "."]
    assert ["".join(batch) for batch in batches_of("A.", 2, needs_model=str.isupper)] == ["A."]
    assert list(batches_of("", 2, needs_model=str.isupper)) == []


def test_an_item_without_work_does_not_wait_for_later_items() -> None:
    drawn: list[str] = []

    def items() -> Iterator[str]:
        for item in ".A":
            drawn.append(item)
            yield item

    batches = batches_of(items(), 2, needs_model=str.isupper)
    assert next(batches) == ["."]
    assert drawn == ["."]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("broken"), ModelFailed),
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_only_errors_of_the_model_other_than_full_memory_change_their_type(
    error: BaseException, expected: type[BaseException]
) -> None:
    with pytest.raises(expected) as caught, model_errors():
        raise error
    assert type(caught.value) is expected


def test_the_message_names_the_error_of_the_model() -> None:
    with pytest.raises(ModelFailed, match="the model failed at a batch: ValueError: shape"), model_errors():
        raise ValueError("shape")
