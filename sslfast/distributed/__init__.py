"""The global batch: what a loss needs to see every rank's embeddings.

Only `torch.distributed` is used, and only when a process group exists: on one process every
function here is the identity.
"""

from __future__ import annotations

from sslfast.distributed.agreement import agreeing, check_agreement
from sslfast.distributed.exchange import (
    exchange_rows,
    mean_over_ranks,
    scale_gradient,
    sum_over_ranks,
)
from sslfast.distributed.frobenius import cross_frobenius_of_ranks
from sslfast.distributed.gather import all_gather_rows
from sslfast.distributed.statistics import column_moments_of_ranks
from sslfast.distributed.world import rank, world_size

__all__ = [
    "agreeing",
    "all_gather_rows",
    "check_agreement",
    "column_moments_of_ranks",
    "cross_frobenius_of_ranks",
    "exchange_rows",
    "mean_over_ranks",
    "rank",
    "scale_gradient",
    "sum_over_ranks",
    "world_size",
]
