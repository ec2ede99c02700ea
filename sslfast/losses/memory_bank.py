"""A queue of past embeddings that serve as negatives (He et al. 2020, section 3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.distributed import all_gather_rows


class MemoryBankModule(nn.Module):
    """First-in-first-out bank of K embeddings with D features, started from random unit rows.

    Names, buffers, initial values and update rule are those of lightly 1.5
    (`lightly.models.modules.memory_bank.MemoryBankModule`): under one seed both hold the same
    rows. The bank is read before it is updated. A batch that reaches its end fills it up, what
    does not fit is dropped, and the next batch starts at row 0. Writing needs no value of the
    device on the host, unlike lightly's, so a step never waits for a GPU here.

    Args:
        size: (K, D), or K alone: then D is taken from the first batch, with a `UserWarning`, as
            lightly 1.5 does (1.6 refuses it), because buffers made after
            `DistributedDataParallel` wrapped the module are not kept equal across ranks.
            0, or K = 0, disables the bank.
        gather_distributed: the embeddings of all ranks enter the bank, in rank order.
        feature_dim_first: return the bank as (D, K), lightly's default, instead of (K, D).

    Attributes:
        bank: (K, D) float32 buffer, not persistent.
        bank_ptr: (1,) int64 buffer, not persistent: the row that the next batch starts at.

    Raises:
        ValueError: a negative entry in `size`.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        size: int | Sequence[int] = 65536,
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
    ) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if not self.size or min(self.size) < 0:
            raise ValueError(f"memory bank size must be K or (K, D), none negative, got {size}")
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.register_buffer("bank", torch.empty(self.size), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)
        if isinstance(size, int) and size > 0:
            warnings.warn(
                f"size={size} leaves the feature dimension to the first batch, which may fail "
                f"in distributed training; give both: size=({size}, dim)",
                UserWarning,
                stacklevel=2,
            )
        elif len(self.size) > 1:
            self._fill_with_random_rows(self.size)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return `output` and the bank as it was before this call.

        Args:
            output: (N, D) embeddings.
            labels: ignored; kept for lightly's signature.
            update: put `output` (of all ranks with `gather_distributed`) into the bank.

        Returns:
            `output` itself and a copy of the bank without gradient, (D, K) or (K, D) by
            `feature_dim_first`; None where the bank is disabled.

        Raises:
            ValueError: `output` has other features than the bank.
        """
        if self.size[0] == 0:
            return output, None
        if self.bank.ndim == 1:
            self._fill_with_random_rows((*self.size, *output.shape[1:]))
        if output.shape[1:] != self.bank.shape[1:]:
            raise ValueError(
                f"output must have the features of the memory bank {tuple(self.bank.shape)}, "
                f"got shape {tuple(output.shape)}"
            )
        # A copy: autograd keeps it for the backward pass, and the update below writes in place.
        bank = self.bank.detach().clone()
        if update:
            self._dequeue_and_enqueue(output)
        return output, bank.transpose(0, -1) if self.feature_dim_first else bank

    @torch.no_grad()
    def _fill_with_random_rows(self, size: tuple[int, ...]) -> None:
        self.bank = F.normalize(torch.randn(size), dim=-1).type_as(self.bank)
        self.bank_ptr.zero_()

    @torch.no_grad()
    def _dequeue_and_enqueue(self, batch: Tensor) -> None:
        if self.gather_distributed:
            batch = all_gather_rows(batch)
        batch = batch.to(self.bank)
        num_rows, capacity = len(batch), self.size[0]
        # Rows past the end all repeat the last row that fits: equal writes, fixed shapes.
        offset = torch.arange(min(num_rows, capacity), device=batch.device)
        offset = offset.minimum(capacity - 1 - self.bank_ptr)
        self.bank.index_copy_(0, self.bank_ptr + offset, batch[offset])
        end = self.bank_ptr + num_rows
        self.bank_ptr.copy_(end * (end < capacity))
