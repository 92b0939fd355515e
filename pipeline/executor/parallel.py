"""One call for each of many parts: here, in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Common = TypeVar("Common")
Part = TypeVar("Part")
Result = TypeVar("Result")


def spread(
    call: Callable[[Common, Part], Result],
    common: Common,
    parts: Sequence[Part],
    *,
    processes: int,
    address: str | None = None,
) -> Iterator[Result]:
    """`call(common, part)` for each part, in their order.

    call: a function of a module, which the other processes import. common: what all parts are told. processes: at most
    so many of this machine at once; 1 is this one. address: of a Ray cluster, whose CPUs are used instead.
    """
    if address is not None:
        return _on_ray(call, common, parts, address)
    if processes == 1 or len(parts) < 2:
        return (call(common, part) for part in parts)
    return _in_processes(call, common, parts, processes)


def _in_processes(
    call: Callable[[Common, Part], Result], common: Common, parts: Sequence[Part], processes: int
) -> Iterator[Result]:
    spawn = multiprocessing.get_context("spawn")  # a filesystem that was used must not be forked
    with ProcessPoolExecutor(min(processes, len(parts)), mp_context=spawn) as pool:
        waiting = [pool.submit(call, common, part) for part in parts]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(
    call: Callable[[Common, Part], Result], common: Common, parts: Sequence[Part], address: str
) -> Iterator[Result]:
    import ray  # takes a second, and is not needed without a cluster

    from pipeline.executor.cluster import connected
    from pipeline.settings import RunSettings

    with connected(RunSettings(address=address), ()):
        task = ray.remote(num_cpus=1)(call)
        for reference in [task.remote(common, part) for part in parts]:
            yield ray.get(reference)
