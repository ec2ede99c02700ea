"""Functions of a module, run on several gloo processes.

The processes stay for the session: a process imports torch for longer than most cases take.
"""

from __future__ import annotations

import atexit
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing import connection, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
TIMEOUT = timedelta(seconds=120)  # of a collective that some rank does not join


def on_ranks(find: Callable[[], Any], num_ranks: int, folder: Path) -> list[Any]:
    """What `find`, a function of a module, returns on every rank, in rank order.

    `folder` is empty, one for every call.
    """
    _ranks(num_ranks).run(find, folder)
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(num_ranks)]


@cache
def _ranks(count: int) -> Ranks:
    return Ranks(count)


class Ranks:
    """Processes of one process group, each of which runs what is sent to it.

    The group lasts as long as they do: `torch.distributed.nn` keeps the first that it sees.
    """

    def __init__(self, count: int) -> None:
        context = get_context("spawn")
        self._folder = TemporaryDirectory(prefix="sslfast-ranks-")
        self._pipes = []
        self._processes = []
        for index in range(count):
            here, there = context.Pipe()
            given = (index, count, f"{self._folder.name}/store", there)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            there.close()  # so that the death of the process ends the pipe
            self._pipes.append(here)
            self._processes.append(process)
        atexit.register(self.end)

    def run(self, find: Callable[[], Any], folder: Path) -> None:
        """Raises RuntimeError with what the first failing rank says; the others are ended."""
        waiting = {pipe: index for index, pipe in enumerate(self._pipes)}
        for pipe in waiting:
            pipe.send((find, folder))
        while waiting:
            for pipe in connection.wait(list(waiting)):
                index = waiting.pop(pipe)
                error = self._answer(index)
                if error:
                    _ranks.cache_clear()
                    self.end()
                    raise RuntimeError(f"rank {index} of {len(self._pipes)}: {error}")

    def _answer(self, index: int) -> str:
        """Empty where a rank has done what it was sent."""
        try:
            answer: str = self._pipes[index].recv()
        except EOFError:
            self._processes[index].join()
            return f"ended with exit code {self._processes[index].exitcode}"
        return answer

    def end(self) -> None:
        for process in self._processes:
            process.kill()


def _serve(index: int, count: int, store: str, pipe: connection.Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=index, world_size=count, timeout=TIMEOUT
    )
    while True:
        try:
            find, folder = pipe.recv()
        except EOFError:  # the session has ended
            return
        error = ""
        try:
            torch.save(find(), folder / f"{index}.pt")
        except BaseException:
            error = traceback.format_exc()
        pipe.send(error)
