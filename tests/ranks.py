"""Run a function on n real torch.distributed ranks; results come back, or every rank's traceback.

The ranks are processes of their own, joined by Gloo over a file in a temporary folder. A fork
server imports torch once for all of them, so that a rank starts in a fraction of a second.
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
"""For the fork server's imports and the rendezvous, on a machine with fewer cores than ranks."""
GRACE_SECONDS = 5.0
"""After one rank failed: for the others to fail too, each with its own traceback."""


class RanksFailed(AssertionError):
    """Some rank raised, died or hung; the message holds every rank's end."""


def run_on_ranks(
    function: Callable[..., Any], n: int, *args: Any, timeout: float = 150.0
) -> list[Any]:
    """`function(*args)` on each of n ranks at once; returns the results in rank order.

    `function` and its arguments must be picklable: a function of a module, not a lambda. In it,
    `torch.distributed` is initialised (`get_rank()`, `get_world_size()`) and torch has one thread.
    Raises RanksFailed when a rank raises, dies, or has not ended after `timeout` seconds.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "torch.distributed", "horovod.torch"])
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        ranks: list[BaseProcess] = [
            server.Process(target=_rank, args=(function, args, rank, n, folder, timeout))
            for rank in range(n)
        ]
        try:
            for rank in ranks:
                rank.start()
            _wait(ranks, folder, time.monotonic() + START_SECONDS + timeout + GRACE_SECONDS)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()
                rank.join()
        return _results(ranks, folder)


def _rank(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    n: int,
    folder: Path,
    timeout: float,
) -> None:
    log = (folder / f"log{rank}").open("w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = timedelta(seconds=START_SECONDS + timeout)
    store = dist.FileStore(str(folder / "rendezvous"), n)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=n, timeout=limit)
    # A rank that hangs says where, in all its threads, and ends.
    faulthandler.dump_traceback_later(timeout, exit=True, file=log)
    try:
        result = function(*args)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    # Written beside and renamed: a rank that ends in the middle of it has no result.
    (folder / f"unfinished{rank}").write_bytes(pickle.dumps(result))
    (folder / f"unfinished{rank}").rename(folder / f"result{rank}")
    # Nobody closes a connection that another still reads from.
    dist.barrier()
    dist.destroy_process_group()


def _wait(ranks: list[BaseProcess], folder: Path, deadline: float) -> None:
    """Until all ranks ended, or the grace after the first failure is over."""
    while alive := [rank for rank in ranks if rank.is_alive()]:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            for rank in alive:
                assert rank.pid is not None
                os.kill(rank.pid, signal.SIGUSR1)
            time.sleep(0.5)
            return
        wait([rank.sentinel for rank in alive], timeout=remaining)
        failed = any(
            not rank.is_alive() and not (folder / f"result{index}").exists()
            for index, rank in enumerate(ranks)
        )
        if failed:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)


def _results(ranks: list[BaseProcess], folder: Path) -> list[Any]:
    results = [folder / f"result{index}" for index in range(len(ranks))]
    if all(result.exists() for result in results):
        return [pickle.loads(result.read_bytes()) for result in results]
    ends = []
    for index, (rank, result) in enumerate(zip(ranks, results, strict=True)):
        state = "returned" if result.exists() else f"failed, exit code {rank.exitcode}"
        log = folder / f"log{index}"
        output = log.read_text(errors="replace")[-6000:] if log.exists() else "(did not start)"
        ends.append(f"--- rank {index} of {len(ranks)}: {state}\n{output}")
    raise RanksFailed("not every rank returned\n" + "\n".join(ends))
