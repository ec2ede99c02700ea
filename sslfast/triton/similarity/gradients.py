"""Launches of the backward pass of the Triton `similarity_logsumexp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslfast._core.similarity import logsumexp_keep as layout
from sslfast._core.similarity.logsumexp import Arguments, Gradients, Needs
from sslfast.triton._launch import launch
from sslfast.triton.similarity import backward as kernels
from sslfast.triton.similarity import plan as plan
from sslfast.triton.similarity.problem import Problem

ALWAYS, UNLESS_REDONE, IF_REDONE = (
    when.value for when in (kernels.ALWAYS, kernels.UNLESS_REDONE, kernels.IF_REDONE)
)


def from_means(drows: Tensor, arguments: Arguments, means: Tensor, needs: Needs) -> Gradients:
    """dq_i = drow_i scale_i m_i, dscale_i = drow_i <q_i, m_i>."""
    queries, scale = arguments.queries, arguments.scale
    empty = scale.new_empty
    means = means[:, : queries.shape[1]]  # (N, D)
    weights = (drows * scale).unsqueeze(1)  # (N, 1)
    dscale = empty(0)
    if needs.scale:
        dots = (queries.to(means.dtype) * means).sum(1) * drows  # (N,)
        dscale = dots if scale.numel() > 1 else dots.sum().reshape(1)
    dqueries = (means * weights).to(queries.dtype) if needs.queries else empty(0)
    return Gradients(dqueries, empty(0), dscale, empty(0))


@dataclass(frozen=True)
class _Incoming:
    """Gradients of the sums, and the power of two that keeps G within the range of float16."""

    drows: Tensor
    dcols: Tensor
    power: Tensor  # (1,)
    unit: Tensor  # (1,), its inverse

    @staticmethod
    def of(p: Problem, drows: Tensor, dcols: Tensor, own_keys: bool = False) -> _Incoming:
        """Where keys own the rows, G takes a scale of each query along."""
        dcols = drows if p.symmetric else dcols
        one = drows.new_ones(1)
        if p.queries.dtype != torch.float16:
            return _Incoming(drows, dcols, one, one)
        # G <= 2 max |gradient|: its largest element comes to at most 2^14.
        largest = drows.abs().amax()
        if p.columns:
            largest = largest.maximum(dcols.abs().amax())
        if own_keys and p.row_scale:
            largest = largest.maximum((drows * p.scale).abs().amax())
        exponent = (13 - largest.log2().ceil()).nan_to_num(0, 0, 0).clamp(-100, 100)
        power = exponent.exp2().reshape(1)
        return _Incoming(drows, dcols, power, power.reciprocal())


def gradients_of(p: Problem, drows: Tensor, dcols: Tensor, needs: Needs) -> Gradients:
    """Gradients of all that the problem's operands need, its features still padded."""
    incoming = _Incoming.of(p, drows, dcols)
    most = plan.fused_features(p.queries.dtype, p.target)
    form = _fused if p.queries.shape[1] <= most else _chunked
    return form(p, incoming, needs)


def _passes(p: Problem) -> list[dict[str, Any]]:
    """Constants of the launches: with the common shift, and where sums have shifts of their own."""
    if not p.two_sided and p.exponentials is None:
        return [{"WHEN": ALWAYS, "COMMON": False, "CACHED": False}]
    cached = p.exponentials is not None
    return [
        {"WHEN": UNLESS_REDONE, "COMMON": True, "CACHED": cached},
        {"WHEN": IF_REDONE, "COMMON": False, "CACHED": False},
    ]


def _fused(p: Problem, incoming: _Incoming, needs: Needs) -> Gradients:
    """Up to 256 features: the owner's gradient in registers, for queries and for keys in turn."""
    empty = p.scale.new_empty
    dqueries, dkeys, dscale, dbias = (empty(0) for _ in needs)
    if needs.queries or needs.scale:
        parts, _ = _own(p, incoming, own_keys=False, need_bias=False)
        dqueries, dscale = _finish_queries(p, incoming, parts, needs)
    if not p.symmetric and (needs.keys or needs.bias):
        incoming = _Incoming.of(p, incoming.drows, incoming.dcols, own_keys=True)
        parts, bias_parts = _own(p, incoming, own_keys=True, need_bias=needs.bias)
        if needs.keys:
            dkeys = p.keys.new_empty(p.keys.shape)
            _finish(p, parts, p.keys, incoming.unit, dkeys, None, scaled=not p.row_scale)
        if needs.bias:
            dbias = bias_parts.sum(0) * incoming.unit
    return Gradients(dqueries, dkeys, dscale, dbias)


def _own(p: Problem, incoming: _Incoming, own_keys: bool, need_bias: bool) -> tuple[Tensor, Tensor]:
    queries, keys, scale, bias, query_ids, key_ids, header = p.tensors()
    by_query = (queries, query_ids, incoming.drows, p.rows)
    by_key = (keys, key_ids, incoming.dcols if p.two_sided else incoming.drows, p.cols)
    owner, other = (by_key, by_query) if own_keys else (by_query, by_key)
    owners, owner_ids, owner_gradient, owner_side = owner
    others, other_ids, other_gradient, other_side = other
    dim = owners.shape[1]
    blocks = plan.gradient_blocks(p.target, owners.dtype, dim)
    owner_blocks, other_blocks = plan.cdiv(len(owners), blocks.m), plan.cdiv(len(others), blocks.n)
    wanted = plan.BACKWARD_PROGRAMS * p.target.processors
    split_blocks = plan.split_of(wanted, owner_blocks, other_blocks)
    splits = plan.cdiv(other_blocks, split_blocks)
    parts = scale.new_empty(splits, len(owners), dim)
    bias_parts = scale.new_empty(splits, len(owners) if need_bias else 0)
    for constants in _passes(p):
        launch(
            kernels.similarity_logsumexp_bwd_kernel,
            (owner_blocks * splits,),
            owners,
            others,
            scale,
            bias,
            owner_ids,
            other_ids,
            header,
            owner_gradient,
            owner_side.shifts,
            owner_side.totals,
            other_gradient,
            other_side.shifts,
            other_side.totals,
            incoming.power,
            header if p.exponentials is None else p.exponentials,
            parts,
            bias_parts,
            len(owners),
            len(others),
            dim,
            owners.stride(0),
            others.stride(0),
            0 if p.exponentials is None else p.exponentials.stride(0),
            owner_blocks,
            split_blocks,
            OWN_KEYS=own_keys,
            OWNER_SUMS=p.two_sided or not own_keys,
            OTHER_SUMS=p.two_sided or own_keys,
            HALF=owners.dtype == torch.float16,
            NEED_BIAS=need_bias,
            **constants,
            **p.constants(),
            **blocks.constants(),
            **blocks.launch(),
        )
    return parts, bias_parts


def _finish_queries(
    p: Problem, incoming: _Incoming, parts: Tensor, needs: Needs
) -> tuple[Tensor, Tensor]:
    """dqueries and dscale from the sum over the keys of G times their rows."""
    empty = p.scale.new_empty
    dqueries = p.queries.new_empty(p.queries.shape if needs.queries else 0)
    dots = empty(len(p.queries)) if needs.scale else None
    out = dqueries if needs.queries else None
    _finish(p, parts, p.queries, incoming.unit, out, dots, scaled=True)
    if dots is None:
        return dqueries, empty(0)
    if p.row_scale:
        return dqueries, dots
    # The symmetric form counts every pair from both sides.
    return dqueries, (dots.sum() * (0.5 if p.symmetric else 1.0)).reshape(1)


def _finish(
    p: Problem,
    parts: Tensor,
    rows: Tensor,
    unit: Tensor,
    gradient: Tensor | None,
    dots: Tensor | None,
    *,
    scaled: bool,
) -> None:
    num_parts, length, dim = parts.shape
    block = 32
    launch(
        kernels.similarity_logsumexp_finish_kernel,
        (plan.cdiv(length, block),),
        parts,
        rows,
        p.scale,
        unit,
        p.header if gradient is None else gradient,
        p.header if dots is None else dots,
        length,
        dim,
        rows.stride(0),
        num_parts,
        ROW_SCALE=p.row_scale,
        SCALED=scaled,
        DOTS=dots is not None,
        GRADIENT=gradient is not None,
        BLOCK=block,
        BLOCK_D=min(64, dim),
    )


def _chunked(p: Problem, incoming: _Incoming, needs: Needs) -> Gradients:
    """Many features: G of some thousand queries at a time, multiplied by the library."""
    (num_rows, dim), num_keys = p.queries.shape, len(p.keys)
    empty = p.scale.new_empty
    blocks = plan.sum_blocks(p.target, p.queries.dtype, dim, resident=False)
    chunk = plan.chunk_rows(num_keys, p.queries.dtype.itemsize, blocks.m)
    with_queries = needs.queries or needs.scale
    with_keys = needs.keys and not p.symmetric
    dqueries, dots = empty(num_rows, dim) if with_queries else empty(0), empty(0)
    dkeys = p.scale.new_zeros((num_keys, dim) if with_keys else 0)
    dbias = p.scale.new_zeros(num_keys if needs.bias else 0)
    largest = p.scale.abs().amax().clamp_min(torch.finfo(torch.float32).tiny).reshape(1)
    stride = layout.exponential_stride(num_keys)
    gradient = p.queries.new_empty(min(chunk, num_rows), stride)
    scaled = gradient.new_empty(gradient.shape if with_keys and p.row_scale else 0)
    for first in range(0, num_rows, chunk):
        rows = slice(first, min(first + chunk, num_rows))
        _gradient_chunk(p, incoming, blocks, rows, gradient, scaled, largest)
        held = rows.stop - first
        g = gradient[:held, :num_keys]
        if with_queries:
            dqueries[rows] = _product(g, p.keys)
        if with_keys:
            transposed = (scaled if p.row_scale else gradient)[:held, :num_keys].T
            dkeys += _product(transposed, p.queries[rows])
        if needs.bias:
            dbias += g.sum(0, dtype=torch.float32)
    if with_queries:
        dqueries, dots = _finish_queries(p, incoming, dqueries.unsqueeze(0), needs)
    if with_keys:
        out = p.keys.new_empty(p.keys.shape)
        unit = incoming.unit * largest if p.row_scale else incoming.unit
        _finish(p, dkeys.unsqueeze(0), p.keys, unit, out, None, scaled=not p.row_scale)
        dkeys = out
    return Gradients(dqueries, dkeys, dots, dbias * incoming.unit if needs.bias else dbias)


def _gradient_chunk(
    p: Problem,
    incoming: _Incoming,
    blocks: plan.Blocks,
    rows: slice,
    gradient: Tensor,
    scaled: Tensor,
    largest: Tensor,
) -> None:
    (num_rows, dim), num_keys = p.queries.shape, len(p.keys)
    chunk_blocks = plan.cdiv(rows.stop - rows.start, blocks.m)
    for constants in _passes(p):
        launch(
            kernels.similarity_logsumexp_gradient_kernel,
            (chunk_blocks * plan.cdiv(num_keys, blocks.n),),
            *p.tensors(),
            incoming.drows,
            p.rows.shifts,
            p.rows.totals,
            incoming.dcols,
            p.cols.shifts,
            p.cols.totals,
            incoming.power,
            p.header if p.exponentials is None else p.exponentials,
            gradient,
            scaled,
            largest,
            rows.start,
            chunk_blocks,
            num_rows,
            num_keys,
            dim,
            p.queries.stride(0),
            p.keys.stride(0),
            0 if p.exponentials is None else p.exponentials.stride(0),
            gradient.stride(0),
            TWO_SIDED=p.two_sided,
            HALF=p.queries.dtype == torch.float16,
            SCALED=scaled.numel() > 0,
            **constants,
            **p.constants(),
            **blocks.constants(),
            **blocks.launch(),
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in float32, whatever the operands."""
    with torch.autocast("cuda" if left.is_cuda else "cpu", enabled=False):
        if left.is_cuda and left.dtype != torch.float32:
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.float() @ right.float()
