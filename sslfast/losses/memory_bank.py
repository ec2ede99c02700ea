"""A queue of past embeddings that serve as negatives (He et al. 2020, section 3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast.distributed import all_gather_rows
from sslfast.losses._state import lasting, writable


class EmbeddingQueue(NamedTuple):
    """The K rows of a bank, and the (1,) int64 row that the next batch starts at."""

    rows: Tensor
    start: Tensor


@torch.no_grad()
def enqueue(
    queue: EmbeddingQueue, batch: Tensor, loss: Tensor, gather_distributed: bool
) -> EmbeddingQueue:
    """Write a batch (N, D), of all ranks where asked for, over the oldest rows of a queue.

    A batch that reaches the end fills it up, what does not fit is dropped, and the next one starts
    at row 0. The queue stays as it is where the loss of the batch, or a row, is not finite: the
    rows of K / N later batches would be compared with it. No value is read on the host.
    """
    with lasting():
        queue = EmbeddingQueue(*map(writable, queue))
        if gather_distributed:
            batch = all_gather_rows(batch.masked_fill(~loss.isfinite(), torch.nan))
        batch = batch.to(queue.rows)
        finite = loss.isfinite().to(batch.device) & batch.isfinite().all()
        num_rows, capacity = len(batch), len(queue.rows)
        # Rows past the end all repeat the last row that fits: equal writes, fixed shapes.
        offset = torch.arange(min(num_rows, capacity), device=batch.device)
        offset = offset.minimum(capacity - 1 - queue.start)
        index = queue.start + offset
        queue.rows.index_copy_(0, index, torch.where(finite, batch[offset], queue.rows[index]))
        end = queue.start + num_rows
        queue.start.copy_(torch.where(finite, end * (end < capacity), queue.start))
    return queue


class MemoryBankModule(nn.Module):
    """First-in-first-out bank of K embeddings with D features, started from random unit rows.

    Names, buffers, initial values and update rule are those of lightly 1.5
    (`lightly.models.modules.memory_bank.MemoryBankModule`): under one seed both hold the same
    rows. The bank is read before it is updated. A batch that reaches its end fills it up, what
    does not fit is dropped, and the next batch starts at row 0. A batch with a NaN or an infinity
    does not enter. Writing needs no value of the device on the host, unlike lightly's, so a step
    never waits for a GPU here.

    Args:
        size: (K, D), or K alone: then D is taken from the first batch, with a `UserWarning`, as
            lightly 1.5 does (1.6 refuses it), because buffers made after
            `DistributedDataParallel` wrapped the module are not kept equal across ranks.
            0, or K = 0, disables the bank.
        gather_distributed: the embeddings of all ranks enter the bank, in rank order.
        feature_dim_first: return the bank as (D, K), lightly's default, instead of (K, D).
        persistent: save the bank with the state, so that a resumed run goes on with it. lightly
            does not, and its checkpoints load where this is False.

    Attributes:
        bank: (K, D) float32 buffer.
        bank_ptr: (1,) int64 buffer: the row that the next batch starts at.

    Raises:
        TypeError: an entry of `size` is not an integer.
        ValueError: a negative entry in `size`.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        size: int | Sequence[int] = 65536,
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
        persistent: bool = False,
    ) -> None:
        super().__init__()
        self.size = _checked_size(size)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.persistent = persistent
        bank, start = torch.empty(self.size, dtype=torch.float32), torch.zeros(1, dtype=torch.long)
        self.register_buffer("bank", bank, persistent=persistent)
        self.register_buffer("bank_ptr", start, persistent=persistent)
        if isinstance(size, int) and size > 0:
            warnings.warn(
                f"size={size} leaves the feature dimension to the first batch, which may fail "
                f"in distributed training; give both: size=({size}, dim)",
                UserWarning,
                stacklevel=2,
            )
        elif len(self.size) > 1:
            self.reset_parameters()

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
        queue = self.queue(output)
        # A copy: autograd keeps it for the backward pass, and the update below writes in place.
        bank = queue.rows.detach().clone()
        if update:
            nothing_lost = output.new_zeros(())
            self.keep(enqueue(queue, output, nothing_lost, self.gather_distributed))
        return output, bank.transpose(0, -1) if self.feature_dim_first else bank

    def queue(self, embeddings: Tensor) -> EmbeddingQueue:
        """The bank for embeddings (N, D), which it takes D from where it has none yet.

        Raises:
            ValueError: they have other features than the bank.
        """
        if self.bank.ndim == 1:
            self._fill_with_random_rows((*self.size, *embeddings.shape[1:]))
        if embeddings.shape[1:] != self.bank.shape[1:]:
            raise ValueError(
                f"output must have the features of the memory bank {tuple(self.bank.shape)}, "
                f"got shape {tuple(embeddings.shape)}"
            )
        return EmbeddingQueue(self.bank, self.bank_ptr)

    def keep(self, queue: EmbeddingQueue) -> None:
        """Keep what `enqueue` returned."""
        self.bank, self.bank_ptr = queue

    def reset_parameters(self) -> None:
        """Fill a bank whose D is known with random unit rows; after ``to_empty``, for instance."""
        if self.bank.ndim > 1:
            self._fill_with_random_rows(tuple(self.bank.shape))

    @torch.no_grad()
    def _fill_with_random_rows(self, size: tuple[int, ...]) -> None:
        with lasting():
            self.bank = F.normalize(torch.randn(size), dim=-1).type_as(self.bank)
            self.bank_ptr = torch.zeros_like(self.bank_ptr)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A bank without D takes the shape of the state."""
        saved = state_dict.get(f"{prefix}bank")
        if self.persistent and self.bank.ndim == 1 and saved is not None and saved.ndim > 1:
            with lasting():
                self.bank = self.bank.new_empty((*self.size, *saved.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _checked_size(size: int | Sequence[int]) -> tuple[int, ...]:
    entries = tuple(size) if isinstance(size, Sequence) else (size,)
    if any(isinstance(each, bool) or not isinstance(each, int) for each in entries):
        raise TypeError(f"memory bank size must be K or (K, D), integers, got {size!r}")
    if not entries or min(entries) < 0:
        raise ValueError(f"memory bank size must be K or (K, D), none negative, got {size}")
    return entries
