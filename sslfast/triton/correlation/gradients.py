"""Launches of the backward pass of the Triton `cross_frobenius`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sslfast._core.correlation import frobenius as layout
from sslfast.triton._launch import launch, target
from sslfast.triton.correlation import backward as kernels
from sslfast.triton.correlation import plan as plan
from sslfast.triton.correlation.products import Kept, Operands, Product, form
from sslfast.triton.similarity.plan import cdiv, precision


@dataclass(frozen=True)
class Incoming:
    """Gradients of the outputs, and the diagonal; contiguous, (0,) where it is not split off."""

    dtotal: Tensor  # ()
    ddiagonal: Tensor  # (D,)
    diagonal: Tensor  # (D,)


@dataclass(frozen=True)
class _Side:
    """One operand, the gradient it gets, and the operand it met."""

    mine: Tensor  # (N, padded D)
    other: Tensor  # (N, padded E)
    dims: tuple[int, int]  # D and E
    is_a: bool


@dataclass(frozen=True)
class _Factors:
    """left right^T (strided: left right) is a product of the gradient's rows and columns."""

    left: Tensor
    right: Tensor
    strided: bool
    unit: Tensor
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))


def gradient_of(operands: Operands, kept: Kept | None, incoming: Incoming, is_a: bool) -> Tensor:
    """Of a, with both sides' in the symmetric form, or of b."""
    pair = (operands.a, operands.b) if is_a else (operands.b, operands.a)
    side = _Side(*pair, operands.dims if is_a else operands.dims[::-1], is_a)
    gradient = side.mine.new_empty(len(side.mine), side.dims[0])
    factors = _formed_again(operands, side) if kept is None else _from_kept(operands, side, kept)
    for each in factors:
        _multiply(operands, side, incoming, each, gradient[each.rows, each.columns])
    return gradient


def _from_kept(operands: Operands, side: _Side, kept: Kept) -> Iterator[_Factors]:
    """da = G_b a and db = G_a b; or, with C = a^T b, da = b C^T and db = a C."""
    which = len(kept.matrices) - 1 if side.is_a else 0
    matrix, unit = kept.matrices[which], kept.units[which]
    if operands.gram:
        yield _Factors(matrix, side.mine, True, unit)
    else:
        yield _Factors(side.other, matrix, not side.is_a, unit)


def _formed_again(operands: Operands, side: _Side) -> Iterator[_Factors]:
    """The same a strip at a time: rows of G, or rows of C (of C^T for b)."""
    mine, other = side.mine, side.other
    length, width = (len(mine), len(mine)) if operands.gram else side.dims
    step = plan.strip_rows(layout.padded(width))
    for first in range(0, length, step):
        strip = slice(first, min(first + step, length))
        held = strip.stop - first
        matrix = mine.new_empty(held, layout.padded(width))
        kept = Kept((matrix,), mine.new_empty(2, 4, dtype=torch.float32))
        if operands.gram:
            form(Product(other[strip], other, (held, width), strided=False), kept)
            yield _Factors(matrix, mine, True, kept.units[0], rows=strip)
        else:
            left = mine[:, first : first + step]
            split = operands.split_diagonal
            form(Product(left, other, (held, width), True, False, False, split, first), kept)
            yield _Factors(other, matrix, False, kept.units[0], columns=strip)


def _multiply(
    operands: Operands, side: _Side, incoming: Incoming, factors: _Factors, gradient: Tensor
) -> None:
    left, right, columns = factors.left, factors.right, factors.columns
    chip, dtype = target(left), left.dtype
    tiles = plan.backward_tiles(chip, dtype, *gradient.shape)
    row_blocks, column_blocks = (
        cdiv(length, block)
        for length, block in zip(gradient.shape, (tiles.m, tiles.n), strict=True)
    )
    other, ddiagonal, diagonal = left, incoming.ddiagonal, incoming.diagonal
    if operands.split_diagonal:
        other = side.other[factors.rows, columns]
        ddiagonal, diagonal = ddiagonal[columns], diagonal[columns]
    launch(
        kernels.cross_frobenius_bwd_kernel,
        (row_blocks * column_blocks,),
        *(left, right, other, incoming.dtotal, ddiagonal, diagonal, factors.unit, gradient),
        *gradient.shape,
        len(right),
        left.shape[1],
        right.shape[1] if factors.strided else len(right),
        *(each.stride(0) for each in (left, right, other, gradient)),
        *(row_blocks, column_blocks),
        SIDES=2 if operands.symmetric else 1,
        SPLIT_DIAGONAL=operands.split_diagonal,
        GRAM=operands.gram,
        SCALED=dtype == torch.float16,
        RIGHT_STRIDED=factors.strided,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=min(tiles.k, left.shape[1]),
        PRECISION=precision(dtype, chip),
        **tiles.launch(),
    )
