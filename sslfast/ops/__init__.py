"""Primitives: the mathematics that losses are written in, one contract a file."""

from __future__ import annotations

from sslfast.ops.cross_frobenius import cross_frobenius
from sslfast.ops.l2_normalize import l2_normalize
from sslfast.ops.similarity_logsumexp import similarity_logsumexp
from sslfast.ops.standardize import standardize

__all__ = ["cross_frobenius", "l2_normalize", "similarity_logsumexp", "standardize"]
