"""This process's place among the ranks; one process without a process group is rank 0 of 1."""

from __future__ import annotations

import torch.distributed as dist


def is_initialized() -> bool:
    """Whether a process group exists (False in a torch built without `torch.distributed`)."""
    return dist.is_available() and dist.is_initialized()


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Index of this process in `group` (default: the world group)."""
    return dist.get_rank(group) if is_initialized() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes in `group` (default: the world group)."""
    return dist.get_world_size(group) if is_initialized() else 1
