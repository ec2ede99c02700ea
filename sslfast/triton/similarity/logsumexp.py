"""Launchers of the Triton `similarity_logsumexp`: what is launched, in order, on which scratch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sslfast._core.similarity import logsumexp_keep as layout
from sslfast._core.similarity.logsumexp import Arguments, Gradients, Needs, Sums
from sslfast._core.similarity.logsumexp_keep import Keep
from sslfast.triton._launch import launch
from sslfast.triton.similarity import forward as kernels
from sslfast.triton.similarity import plan as plan
from sslfast.triton.similarity.gradients import from_means, gradients_of
from sslfast.triton.similarity.problem import Problem, problem_of


def forward(arguments: Arguments, keep: Keep, cache_elements: int) -> Sums:
    scale = arguments.scale
    num_rows, num_keys = len(arguments.queries), arguments.num_keys
    rows = scale.new_empty(num_rows)
    cols = scale.new_empty(num_keys if arguments.columns else 0)
    cache = scale.new_empty(cache_elements)
    room = cache  # the kernels write their sums, kept or not
    if keep == Keep.NOTHING:
        room = scale.new_empty(layout.sum_elements(arguments))
    problem = problem_of(arguments, keep, room)
    problem.header.zero_()
    _bound(problem)
    parts = _sum_tiles(problem)
    _sum_parts(problem, parts, rows, cols)
    _redo(problem, rows, cols)
    return Sums(rows, cols, cache)


def backward(
    drows: Tensor, dcols: Tensor, arguments: Arguments, sums: Sums, keep: Keep, needs: Needs
) -> Gradients:
    if keep == Keep.NOTHING:  # the op itself was called so, with a gradient to come
        keep = Keep.SUMS
        sums = forward(arguments, keep, layout.sum_elements(arguments))
    problem = problem_of(arguments, keep, sums.cache)
    if problem.means is not None:
        return from_means(drows, arguments, problem.means, needs)
    gradients = gradients_of(problem, drows.contiguous(), dcols.contiguous(), needs)
    dim = arguments.queries.shape[1]
    dqueries, dkeys = (_cut(rows, dim) for rows in (gradients.queries, gradients.keys))
    return gradients._replace(queries=dqueries, keys=dkeys)


def _cut(rows: Tensor, dim: int) -> Tensor:
    return rows[:, :dim].contiguous() if rows.ndim == 2 else rows


def _bound(p: Problem) -> None:
    (num_rows, dim), num_keys = p.queries.shape, len(p.keys)
    block = 32
    launch(
        kernels.similarity_logsumexp_bound_kernel,
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
        kernels.similarity_logsumexp_fwd_kernel,
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
            kernels.similarity_logsumexp_sum_kernel,
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
            kernels.similarity_logsumexp_redo_kernel,
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
