"""The smoothed average precision of every row, one chunk of rows at a time.

For a query i with the positives P(i) among M keys, s_ik = <q_i, k_k> and the sigmoid sg,

    P_ij = 1 + sum_{k in P(i), k != j} sg((s_ik - s_ij) / t)       rank of j among the positives
    N_ij =     sum_{k not in P(i)}     sg((s_ik - s_ij) / t)       negatives before j
    loss = 1/N sum_i 1/|P(i)| sum_{j in P(i)} N_ij / (P_ij + N_ij)

which is 1 - AP without the difference, so that a row in nearly perfect order keeps its digits.
With h_ijk = sg (1 - sg) / t, and c_ijk = P_ij / (P_ij + N_ij)^2 where k is a negative and
-N_ij / (P_ij + N_ij)^2 where it is a positive other than j,

    dloss/ds_ik = 1/(N |P(i)|) (sum_j c_ijk h_ijk - [k in P(i)] sum_l c_ikl h_ikl)

A chunk of queries makes its sigmoids, its part of the loss and its part of the gradient, and is
forgotten: N M m sigmoids, m positives a query, in O((N + M) (m + D)) memory, never N M^2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslfast._core.calls import wanted
from sslfast._core.checks import values_are_read
from sslfast._core.numerics import mean

# Sigmoids that are held at a time: a megabyte of float32, which stays in a core's cache.
CHUNK = 1 << 18


class Positives(NamedTuple):
    """Where the keys with a query's label are, queries with most of them first.

    rows: (N,) indices of the queries.
    slots: (N, m) indices of their positives, M beyond the last.
    widths: N numbers on the host, falling: positives of a query, at most.
    """

    rows: Tensor
    slots: Tensor
    widths: list[int]


def smooth_average_precision(
    queries: Tensor,
    keys: Tensor | None,
    query_labels: Tensor,
    key_labels: Tensor | None,
    temperature: float,
    max_class_size: int | None,
) -> Tensor:
    """1 - AP, the mean over queries (N, D) in float32 or float64, among keys (M, D).

    Args:
        keys: ``None``: the queries, whose labels are the keys' too.
        key_labels: (M,) labels; every query's label is among them.
        max_class_size: keys that share a label, at most; ``None``: read off the labels.
    """
    tensors = [queries] if keys is None else [queries, keys]
    gradient = torch.is_grad_enabled() and any(rows.requires_grad for rows in tensors)
    loss: Tensor = _forward(
        queries, keys, query_labels, key_labels, temperature, max_class_size or 0, gradient
    )[0]
    return loss


# An op, because what the labels hold decides the shape of the work: a compiled graph asks them at
# run time.
@torch.library.custom_op(
    "sslfast::smooth_average_precision",
    mutates_args=(),
    schema="(Tensor queries, Tensor? keys, Tensor query_labels, Tensor? key_labels,"
    " float temperature, int max_class_size, bool gradient)"
    " -> (Tensor loss, Tensor dqueries, Tensor dkeys)",
)
def _forward(
    queries: Tensor,
    keys: Tensor | None,
    query_labels: Tensor,
    key_labels: Tensor | None,
    temperature: float,
    max_class_size: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    others = queries if keys is None else keys  # (M, D)
    labels = query_labels if key_labels is None else key_labels  # (M,)
    positives = _positives(query_labels, labels, max_class_size)
    terms = queries.new_empty(len(queries))  # (N,), in the order of `positives`
    dqueries = torch.zeros_like(queries if gradient else queries[:0])  # (N, D)
    dkeys = torch.zeros_like(others if gradient else others[:0])  # (M, D)
    begin = 0
    with torch.autocast(queries.device.type, enabled=False):
        while begin < len(queries):
            width = positives.widths[begin]
            end = begin + max(1, CHUNK // (width * len(others)))
            rows, slots = positives.rows[begin:end], positives.slots[begin:end, :width]
            similar = queries[rows] @ others.T  # (c, M)
            same = query_labels[rows, None] == labels  # (c, M)
            terms[begin:end], dsimilar = _chunk(similar, same, slots, temperature, gradient)
            if dsimilar is not None:
                dsimilar /= len(queries)
                dqueries[rows] = dsimilar @ others
                dkeys.addmm_(dsimilar.T, queries[rows])
            begin = end
    if keys is None:
        dqueries, dkeys = dqueries + dkeys, dkeys[:0].clone()
    return mean(terms), dqueries, dkeys


@_forward.register_fake
def _(queries: Tensor, keys: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    gradient = rest[-1]
    others = queries.new_empty((0, queries.shape[1])) if keys is None else keys
    dqueries, dkeys = (
        rows.new_empty(rows.shape if gradient else (0, rows.shape[1])) for rows in (queries, others)
    )
    return queries.new_empty(()), dqueries, dkeys


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


@torch.library.custom_op(
    "sslfast::smooth_average_precision_backward",
    mutates_args=(),
    schema="(Tensor dloss, Tensor drows) -> Tensor",
)
def _scale(dloss: Tensor, drows: Tensor) -> Tensor:
    """What the forward pass has formed, scaled. Has no gradient of its own."""
    return dloss * drows


@_scale.register_fake
def _(dloss: Tensor, drows: Tensor) -> Tensor:
    return drows.new_empty(drows.shape)


def _autograd(
    ctx: Any, dloss: Tensor | None, ddqueries: None, ddkeys: None
) -> tuple[Tensor | None, ...]:
    gradients = [] if dloss is None else [_scale(dloss, drows) for drows in ctx.saved_tensors]
    return wanted(gradients, ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _positives(query_labels: Tensor, labels: Tensor, max_class_size: int) -> Positives:
    in_order, order = labels.sort(stable=True)  # (M,), (M,)
    first = torch.searchsorted(in_order, query_labels)  # (N,)
    counts = torch.searchsorted(in_order, query_labels, right=True) - first  # (N,)
    counts, rows = counts.sort(descending=True, stable=True)
    if max_class_size and values_are_read(labels) and int(counts[0]) > max_class_size:
        raise ValueError(
            f"max_class_size must be at least the rows of the largest class, {int(counts[0])}, "
            f"got {max_class_size}"
        )
    known = max_class_size > 0 and labels.device.type != "cpu"
    widths = [max_class_size] * len(rows) if known else counts.tolist()
    place = torch.arange(widths[0], device=labels.device)  # (m,)
    slots = order[(first[rows, None] + place).clamp_max(len(labels) - 1)]  # (N, m)
    return Positives(rows, slots.where(place < counts[:, None], len(labels)), widths)


def _chunk(
    similar: Tensor, same: Tensor, slots: Tensor, temperature: float, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Terms (c,) and dterms/dsimilar (c, M) of queries with similarities (c, M) to the keys.

    Args:
        same: (c, M), whether a key is a positive.
        slots: (c, m) indices of the positives, M beyond the last.
    """
    num_keys = similar.shape[1]
    valid = slots < num_keys  # (c, m)
    index = slots.clamp_max(num_keys - 1)  # (c, m)
    logits = similar[:, None] - similar.gather(1, index)[..., None]  # (c, m, M)
    before = logits.div_(temperature).sigmoid_()  # (c, m, M)
    before.scatter_(2, index[..., None], 0)  # j does not come before itself
    kinds = torch.stack((~same, same), -1).to(before.dtype)  # (c, M, 2): negatives, positives
    negatives, positives = (before @ kinds).unbind(-1)  # (c, m) each
    positives = positives + 1
    ranks = positives + negatives
    weights = valid.to(similar.dtype)  # (c, m)
    weights = weights / weights.sum(1, keepdim=True)
    terms = (negatives / ranks * weights).sum(1)  # (c,)
    if not gradient:
        return terms, None
    slopes = before.addcmul_(before, before, value=-1).div_(temperature)  # (c, m, M)
    factors = torch.stack((positives, -negatives), 1) * (weights / ranks.square())[:, None]
    dkeys = (factors @ slopes * kinds.mT).sum(1)  # (c, M): (c, 2, m) @ (c, m, M), each kind its own
    dslots = (slopes @ kinds * factors.mT).sum(-1)  # (c, m)
    # A column more takes what lies beyond the last positive, so that no place is written twice.
    drop = similar.new_zeros(len(similar), num_keys + 1).scatter_(1, slots, dslots)
    return terms, dkeys - drop[:, :-1]
