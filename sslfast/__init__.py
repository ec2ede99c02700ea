"""Kernel-accelerated self-supervised learning for PyTorch.

`sslfast.losses` holds the objectives as modules, `sslfast.functional` as functions; both are
written in the primitives of `sslfast.ops`, which run on the backend that `explain` names.
"""

from __future__ import annotations

from sslfast import functional, losses
from sslfast._backends import backend, explain
from sslfast.ops import (
    cross_frobenius,
    isotonic_rank,
    l2_normalize,
    relaxed_sort,
    similarity_logsumexp,
    similarity_topk,
    sorting_group_mass,
    standardize,
)

__all__ = [
    "backend",
    "cross_frobenius",
    "explain",
    "functional",
    "isotonic_rank",
    "l2_normalize",
    "losses",
    "relaxed_sort",
    "similarity_logsumexp",
    "similarity_topk",
    "sorting_group_mass",
    "standardize",
]
