"""Makes shards in several processes, with one progress bar; an interruption ends all of them."""

import multiprocessing
import queue
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harness.data.pack import Shard
from harness.errors import RunFailed
from harness.pack.shard import Job, make_shard

LOOK_SECONDS = 0.5
"""Time between two looks at the processes while none of them reports."""


class _Stopped(Exception):
    """Raised in a process when the pack was interrupted."""


def make_shards(jobs: list[Job], folder: Path, processes: int) -> dict[str, Shard]:
    """The shards by the names of their jobs. Raises OSError if the disk fails."""
    total = sum(len(job.files) for job in jobs)
    with tqdm(desc="packing", total=total, unit="image", delay=1.0) as bar:

        def tell(pictures: int) -> None:
            bar.update(pictures)

        if min(processes, len(jobs)) < 2:
            return {job.name: make_shard(job, folder, tell) for job in jobs}
        return _in_parallel(jobs, folder, min(processes, len(jobs)), tell)


def _in_parallel(
    jobs: list[Job], folder: Path, processes: int, tell: Callable[[int], None]
) -> dict[str, Shard]:
    # Not by fork: torch has started threads here.
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, context, _begin) as pool,
    ):
        told, stopped = manager.Queue(), manager.Event()
        made = {job.name: pool.submit(_make, job, folder, told, stopped) for job in jobs}
        try:
            while not all(each.done() for each in made.values()):
                _raise_failure(made)
                try:
                    tell(told.get(timeout=LOOK_SECONDS))
                except queue.Empty:
                    continue
            _raise_failure(made)
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
        return {name: each.result() for name, each in made.items()}


def _raise_failure(made: dict[str, "Future[Shard]"]) -> None:
    for each in made.values():
        if not each.done() or (error := each.exception()) is None:
            continue
        if isinstance(error, BrokenProcessPool):
            raise RunFailed(
                "a process that packs was ended, perhaps for want of memory; run the same command "
                "with fewer --processes: what is finished is kept"
            ) from error
        raise error


def _begin() -> None:
    """Runs first in every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(1)


def _make(job: Job, folder: Path, told: Any, stopped: Any) -> Shard:
    def tell(pictures: int) -> None:
        told.put(pictures)
        if stopped.is_set():
            raise _Stopped

    return make_shard(job, folder, tell)
