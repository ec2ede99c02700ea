"""Launchers of the Triton `similarity_logsumexp`: what is launched, in order, on which scratch.

The cache holds a header, then shift and total of every row and column (exponents in units of
log 2), then the means of the keys or the exponentials where they are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslfast.ops import _similarity_cost as cost
from sslfast.ops._similarity_arguments import Arguments, Gradients, Needs, Sums, no_queries
from sslfast.triton import _similarity_backward as kernels_backward
from sslfast.triton import _similarity_forward as kernels_forward
from sslfast.triton import _similarity_plan as plan
from sslfast.triton._launch import Target, launch, target

ALWAYS, UNLESS_REDONE, IF_REDONE = 0, 1, 2


@dataclass(frozen=True)
class Side:
    """One side's sums in units of log 2: exp2(shift) total."""

    shifts: Tensor
    totals: Tensor


@dataclass(frozen=True)
class Problem:
    """Operands as the kernels read them, and where the cache keeps what."""

    queries: Tensor
    keys: Tensor
    scale: Tensor
    bias: Tensor | None
    query_ids: Tensor | None
    key_ids: Tensor | None
    symmetric: bool
    columns: bool
    header: Tensor
    rows: Side
    cols: Side
    means: Tensor | None
    exponentials: Tensor | None
    target: Target

    @property
    def two_sided(self) -> bool:
        return self.symmetric or self.columns

    @property
    def row_scale(self) -> bool:
        return self.scale.numel() > 1

    def tensors(self) -> tuple[Any, ...]:
        """Operand pointers in the kernels' order; what is absent is never read."""
        absent = self.header
        optional = (self.bias, self.query_ids, self.key_ids)
        given = [absent if each is None else each for each in optional]
        return self.queries, self.keys, self.scale, *given, self.header

    def constants(self) -> dict[str, Any]:
        return {
            "ROW_SCALE": self.row_scale,
            "HAS_BIAS": self.bias is not None,
            "HAS_IDS": self.query_ids is not None,
            "PRECISION": plan.precision(self.queries.dtype, self.target),
        }


def forward(arguments: Arguments, keep: str) -> Sums:
    scale = arguments.scale
    num_rows, num_keys = len(arguments.queries), arguments.num_keys
    rows = scale.new_empty(num_rows)
    cols = scale.new_empty(num_keys if arguments.columns else 0)
    cache = scale.new_empty(cost.cache_elements(arguments, keep))
    if num_rows == 0:
        return Sums(rows, cols, cache)
    room = cache if keep != "nothing" else scale.new_empty(cost.cache_elements(arguments, "sums"))
    problem = _problem(arguments, keep, room)
    problem.header.zero_()
    _bound(problem)
    parts = _sum_tiles(problem)
    _sum_parts(problem, parts, rows, cols)
    _redo(problem, rows, cols)
    return Sums(rows, cols, cache)


def backward(
    drows: Tensor, dcols: Tensor, arguments: Arguments, sums: Sums, keep: str, needs: Needs
) -> Gradients:
    if len(arguments.queries) == 0:
        return no_queries(arguments, needs)
    if keep == "nothing":  # the op itself was called so, with a gradient to come
        keep, sums = "sums", forward(arguments, "sums")
    problem = _problem(arguments, keep, sums.cache)
    if problem.means is not None:
        return _from_means(drows, arguments, problem.means, needs)
    incoming = _Incoming.of(problem, drows.contiguous(), dcols.contiguous())
    most = plan.fused_features(problem.queries.dtype, problem.target)
    fused = problem.queries.shape[1] <= most
    gradients = (_fused if fused else _chunked)(problem, incoming, needs)
    dim = arguments.queries.shape[1]
    dqueries, dkeys = (_cut(rows, dim) for rows in (gradients.queries, gradients.keys))
    return gradients._replace(queries=dqueries, keys=dkeys)


def _cut(rows: Tensor, dim: int) -> Tensor:
    return rows[:, :dim].contiguous() if rows.ndim == 2 else rows


def _problem(arguments: Arguments, keep: str, cache: Tensor) -> Problem:
    queries = _aligned(arguments.queries)
    num_rows, num_keys = len(queries), arguments.num_keys
    symmetric = arguments.keys is None
    keys = queries if arguments.keys is None else _aligned(arguments.keys)
    optional = (arguments.bias, arguments.query_ids, arguments.other_ids)
    bias, query_ids, key_ids = (None if e is None else e.contiguous() for e in optional)
    header = cache[: cost.CACHE_HEADER].view(torch.int32)
    sums = cache[cost.CACHE_HEADER :]
    rows = Side(sums[:num_rows], sums[num_rows : 2 * num_rows])
    cols = rows
    if arguments.columns:
        sums = sums[2 * num_rows :]
        cols = Side(sums[:num_keys], sums[num_keys : 2 * num_keys])
    rest = cache[cost.sum_elements(arguments) :]
    means = exponentials = None
    if keep == "mean_keys":
        means = rest[: queries.numel()].view(queries.shape)
    if keep == "exponentials":
        exponentials = rest.view(cost.exponential_dtype(queries.dtype))
        exponentials = exponentials.view(num_rows, cost.exponential_stride(num_keys))
    return Problem(
        queries,
        keys,
        arguments.scale.contiguous(),
        bias,
        query_ids,
        key_ids,
        symmetric,
        arguments.columns,
        header,
        rows,
        cols,
        means,
        exponentials,
        target(queries),
    )


def _aligned(rows: Tensor) -> Tensor:
    """Rows that are read 16 bytes at a time: a copy with zeros behind the last feature, if need be.

    Their products and norms are those of the rows; a gradient has zeros there, cut off at the end.
    """
    num_rows, dim = rows.shape
    width = cost.padded_features(dim)
    step = rows.stride(0) * rows.element_size()
    if dim == width and rows.stride(1) == 1 and (step | rows.data_ptr()) % 16 == 0:
        return rows
    copy = rows.new_zeros(num_rows, width)
    copy[:, :dim] = rows
    return copy


def _bound(p: Problem) -> None:
    (num_rows, dim), num_keys = p.queries.shape, len(p.keys)
    block = 32
    launch(
        kernels_forward.similarity_logsumexp_bound_kernel,
        (plan.cdiv(num_rows if p.symmetric else max(num_rows, num_keys), block),),
        p.queries,
        p.keys,
        p.scale,
        p.header if p.bias is None else p.bias,
        p.header,
        num_rows,
        num_keys,
        dim,
        p.queries.stride(0),
        p.keys.stride(0),
        SYMMETRIC=p.symmetric,
        ROW_SCALE=p.row_scale,
        HAS_BIAS=p.bias is not None,
        BLOCK=block,
        BLOCK_D=min(64, dim),
    )


@dataclass(frozen=True)
class _Parts:
    """What the programs of the forward pass leave behind."""

    rows: Tensor  # (splits, N)
    cols: Tensor  # (groups, M)
    means: Tensor  # (splits, N, D)
    blocks: plan.Blocks
    group_blocks: int


def _sum_blocks(p: Problem, dim: int, means: Tensor | None) -> plan.Blocks:
    choose = plan.sum_blocks if means is None else plan.gradient_blocks
    blocks = choose(p.target, p.queries.dtype, dim)
    crowded = p.bias is not None and p.query_ids is not None
    return plan.crowded(blocks, p.target) if crowded else blocks


def _sum_tiles(p: Problem) -> _Parts:
    (num_rows, dim), num_keys = p.queries.shape, len(p.keys)
    blocks = _sum_blocks(p, dim, p.means)
    row_blocks, key_blocks = plan.cdiv(num_rows, blocks.m), plan.cdiv(num_keys, blocks.n)
    if p.symmetric:
        group_blocks = split_blocks = plan.groups_symmetric(p.target, row_blocks)
    elif p.columns:
        group_blocks, split_blocks = plan.groups_two_sided(p.target, row_blocks, key_blocks)
    else:
        # Every split of a row keeps its own means of the keys: then fewer of them.
        each = plan.FORWARD_PROGRAMS if p.means is None else plan.BACKWARD_PROGRAMS
        wanted = each * p.target.processors
        group_blocks, split_blocks = 1, plan.split_of(wanted, row_blocks, key_blocks)
    groups, splits = plan.cdiv(row_blocks, group_blocks), plan.cdiv(key_blocks, split_blocks)
    empty = p.rows.totals.new_empty
    parts = _Parts(
        rows=empty(splits, num_rows),
        cols=empty((groups, num_keys) if p.two_sided else 0),
        means=empty((splits, num_rows, dim) if p.means is not None else 0),
        blocks=blocks,
        group_blocks=group_blocks,
    )
    launch(
        kernels_forward.similarity_logsumexp_fwd_kernel,
        (groups * (groups + 1) // 2 if p.symmetric else groups * splits,),
        *p.tensors(),
        parts.rows,
        parts.cols,
        parts.means,
        p.header if p.exponentials is None else p.exponentials,
        num_rows,
        num_keys,
        dim,
        p.queries.stride(0),
        p.keys.stride(0),
        0 if p.exponentials is None else p.exponentials.stride(0),
        groups,
        group_blocks,
        split_blocks,
        SYMMETRIC=p.symmetric,
        COLUMNS=p.columns,
        MEANS=p.means is not None,
        KEEP=p.exponentials is not None,
        RESIDENT=blocks.resident,
        **p.constants(),
        **blocks.constants(),
        **blocks.launch(),
    )
    return parts


def _sum_parts(p: Problem, parts: _Parts, rows: Tensor, cols: Tensor) -> None:
    dim = p.queries.shape[1]
    sides = [(p.rows, parts.rows, rows, p.means)]
    if p.columns:
        sides.append((p.cols, parts.cols, cols, None))
    for side, part, lse, means in sides:
        # A program of the symmetric form must lie within one group.
        block = 32 if means is not None else parts.blocks.m
        launch(
            kernels_forward.similarity_logsumexp_sum_kernel,
            (plan.cdiv(len(lse), block),),
            p.scale,
            p.header,
            part,
            parts.cols,
            parts.means,
            lse,
            side.shifts,
            side.totals,
            p.header if means is None else means,
            len(lse),
            dim,
            len(part),
            parts.group_blocks,
            SYMMETRIC=p.symmetric,
            ROW_SCALE=p.row_scale,
            MEANS=means is not None,
            BLOCK=block,
            BLOCK_D=parts.blocks.d,
        )


def _redo(p: Problem, rows: Tensor, cols: Tensor) -> None:
    queries, keys, scale, bias, query_ids, key_ids, header = p.tensors()
    sides = [(queries, keys, query_ids, key_ids, rows, p.rows, p.means)]
    if p.columns:
        sides.append((keys, queries, key_ids, query_ids, cols, p.cols, None))
    for owners, others, owner_ids, other_ids, lse, side, means in sides:
        dim = owners.shape[1]
        blocks = plan.redo_blocks(_sum_blocks(p, dim, means))
        launch(
            kernels_forward.similarity_logsumexp_redo_kernel,
            (plan.cdiv(len(owners), blocks.m),),
            owners,
            others,
            scale,
            bias,
            owner_ids,
            other_ids,
            header,
            lse,
            side.shifts,
            side.totals,
            header if means is None else means,
            len(owners),
            len(others),
            dim,
            owners.stride(0),
            others.stride(0),
            MEANS=means is not None,
            RESIDENT=blocks.resident,
            **p.constants(),
            **blocks.constants(),
            **blocks.launch(),
        )


def _from_means(drows: Tensor, arguments: Arguments, means: Tensor, needs: Needs) -> Gradients:
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
    def of(p: Problem, drows: Tensor, dcols: Tensor) -> _Incoming:
        dcols = drows if p.symmetric else dcols
        one = drows.new_ones(1)
        if p.queries.dtype != torch.float16:
            return _Incoming(drows, dcols, one, one)
        # G <= 2 max |gradient|: its largest element comes to at most 2^14.
        largest = drows.abs().amax()
        if p.columns:
            largest = largest.maximum(dcols.abs().amax())
        exponent = (13 - largest.log2().ceil()).nan_to_num(0, 0, 0).clamp(-100, 100)
        power = exponent.exp2().reshape(1)
        return _Incoming(drows, dcols, power, power.reciprocal())


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
            kernels_backward.similarity_logsumexp_bwd_kernel,
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
        kernels_backward.similarity_logsumexp_finish_kernel,
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
    stride = cost.exponential_stride(num_keys)
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
            kernels_backward.similarity_logsumexp_gradient_kernel,
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
