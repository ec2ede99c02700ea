"""Primitives: the mathematics that losses are written in, one contract a file."""

from __future__ import annotations

from sslfast.ops.correlation.frobenius import cross_frobenius
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.rows.standardize import standardize
from sslfast.ops.similarity.logsumexp import similarity_logsumexp
from sslfast.ops.similarity.topk import similarity_topk
from sslfast.ops.sorting.group_mass import sorting_group_mass
from sslfast.ops.sorting.isotonic import isotonic_rank
from sslfast.ops.sorting.relaxed_sort import relaxed_sort

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
