"""Contrastive losses: each row picks its positives among other rows. One file a loss.

They have one shape: with ``l_i`` the log-sum-exp over the keys that are *not* positives, the term
of row i is ``-log sigmoid(positive_i - l_i)``. Excluding the positive from the sum and comparing
it afterwards has no ``p - 1`` to cancel, and stays exact where there is no negative at all
(``l_i = -inf``: the term is 0).
"""

from __future__ import annotations

from sslfast.losses.contrastive.ntxent import NTXentLoss, ntxent_loss

__all__ = ["NTXentLoss", "ntxent_loss"]
