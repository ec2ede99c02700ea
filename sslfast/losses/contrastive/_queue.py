"""Negatives that are no part of the batch: given rows, or a queue that the positives then enter."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.checks import check_device, check_rows
from sslfast.distributed import all_gather_rows
from sslfast.losses.contrastive._rows import one_sided_loss
from sslfast.losses.memory_bank import EmbeddingQueue, enqueue

Negatives = Tensor | EmbeddingQueue | None


def check_negatives(
    negatives: Negatives,
    rows_name: str,
    rows: Tensor,
    *,
    update: bool,
    gather_distributed: bool,
    symmetric: bool = False,
) -> None:
    """Rows (K, D), or a queue of them where `update` is True, beside `rows` (N, D).

    Raises:
        TypeError: they are no floating matrix.
        ValueError: no row, other features, another device (a queue is copied), an option that
            needs the other rows of the batch, or `update` without a queue.
    """
    if update and not isinstance(negatives, EmbeddingQueue):
        raise ValueError(
            f"update must be False unless negatives are an EmbeddingQueue, got {update} with "
            f"{type(negatives).__name__}"
        )
    if negatives is None:
        return
    given = negatives.rows if isinstance(negatives, EmbeddingQueue) else negatives
    check_rows("negatives", given, "(K, D)")
    if not isinstance(negatives, EmbeddingQueue):
        check_device("negatives", given, rows_name, rows)
    if given.shape[1] != rows.shape[1]:
        raise ValueError(
            f"negatives must have the {rows.shape[1]} features of {rows_name}, "
            f"got shape {tuple(given.shape)}"
        )
    gathers = gather_distributed and not update  # with it: the rows of all ranks enter the queue
    for name, option in (("symmetric", symmetric), ("gather_distributed", gathers)):
        if option:
            raise ValueError(
                f"{name} must be False when negatives are given, got True: they replace the "
                "other rows of the batch"
            )


def loss_against(
    negatives: Tensor | EmbeddingQueue,
    queries: Tensor,
    positives: Tensor,
    temperature: float | Tensor,
    *,
    update: bool,
    gather_distributed: bool,
) -> Tensor | tuple[Tensor, EmbeddingQueue]:
    """The one-sided loss; with `update` also the queue, which was read before."""
    if not isinstance(negatives, EmbeddingQueue):
        return one_sided_loss(queries, positives, negatives, temperature)
    # A copy: autograd keeps it for the backward pass, and the queue is written in place, by this
    # call or by a later one.
    copy = update or torch.is_grad_enabled()
    rows = negatives.rows.detach().to(queries.device, copy=copy)
    loss = one_sided_loss(queries, positives, rows, temperature)
    if not update:
        return loss
    return loss, enqueue(negatives, positives, loss.detach(), gather_distributed)


def enqueued_eagerly(
    queue: EmbeddingQueue, batch: Tensor, gather_distributed: bool
) -> EmbeddingQueue:
    """The queue after a batch as MoCo writes it: the rows that fit, then the pointer. Oracle."""
    batch = all_gather_rows(batch) if gather_distributed else batch
    start, end = int(queue.start), int(queue.start) + len(batch)
    rows = queue.rows.clone()
    rows[start:end] = batch[: len(rows) - start].detach()
    return EmbeddingQueue(rows, queue.start.new_tensor([end if end < len(rows) else 0]))
