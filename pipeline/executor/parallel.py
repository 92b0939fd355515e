"""Calls a function for each of many parts: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Common = TypeVar("Common")
Part = TypeVar("Part")
Result = TypeVar("Result")


def parallel_map(
    call: Callable[[Common, Part], Result],
    common: Common,
    parts: Sequence[Part],
    *,
    processes: int,
    address: str | None = None,
) -> Iterator[Result]:
    """Yield ``call(common, part)`` for each part, in order.

    Args:
        call: A function of a module, which the other processes import.
        common: First argument of every call.
        parts: Second arguments of the calls.
        processes: Largest number of processes on this machine; 1 makes the calls in this process.
        address: Address of a Ray cluster whose CPUs are used instead.
    """
    if address is not None:
        return _on_ray(call, common, parts, address)
    if processes == 1 or len(parts) < 2:
        return (call(common, part) for part in parts)
    return _in_processes(call, common, parts, processes)


def _in_processes(
    call: Callable[[Common, Part], Result], common: Common, parts: Sequence[Part], processes: int
) -> Iterator[Result]:
    spawn = multiprocessing.get_context("spawn")  # an fsspec file system that has been used must not be forked
    with ProcessPoolExecutor(min(processes, len(parts)), mp_context=spawn) as pool:
        futures = [pool.submit(call, common, part) for part in parts]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(
    call: Callable[[Common, Part], Result], common: Common, parts: Sequence[Part], address: str
) -> Iterator[Result]:
    import ray  # takes a second and is needed only with a cluster

    from pipeline.executor.connection import connected
    from pipeline.settings import RunSettings

    with connected(RunSettings(address=address), ()):
        task = ray.remote(num_cpus=1)(call)
        for reference in [task.remote(common, part) for part in parts]:
            yield ray.get(reference)
