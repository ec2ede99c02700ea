"""Primitives: the mathematics that losses are written in, one contract a file."""

from __future__ import annotations

from sslfast.ops.cross_frobenius import cross_frobenius
from sslfast.ops.isotonic_rank import isotonic_rank
from sslfast.ops.l2_normalize import l2_normalize
from sslfast.ops.relaxed_sort import relaxed_sort
from sslfast.ops.similarity_logsumexp import similarity_logsumexp
from sslfast.ops.similarity_topk import similarity_topk
from sslfast.ops.sorting_group_mass import sorting_group_mass
from sslfast.ops.standardize import standardize

__all__ = [
    "cross_frobenius",
    "isotonic_rank",
    "l2_normalize",
    "relaxed_sort",
    "similarity_logsumexp",
    "similarity_topk",
    "sorting_group_mass",
    "standardize",
]
