"""Several gloo processes that run one function, and what each of them found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
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
    torch.multiprocessing.spawn(_rank, (find, num_ranks, folder), nprocs=num_ranks)
    return [torch.load(folder / f"{index}.pt", weights_only=False) for index in range(num_ranks)]


def _rank(index: int, find: Callable[[], Any], num_ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=index, world_size=num_ranks, timeout=TIMEOUT
    )
    torch.save(find(), folder / f"{index}.pt")
    dist.destroy_process_group()
