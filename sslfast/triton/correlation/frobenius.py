"""Launchers of the Triton `cross_frobenius`.

Forward: the products' tiles, the diagonal where no product has it, one sum of all slots.
Backward: one product with what was kept for each operand; where nothing was kept, a strip of
products at a time, formed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.correlation.frobenius import (
    Arguments,
    Gradients,
    Sums,
    no_rows,
    no_rows_gradients,
)
from sslfast.triton._launch import launch
from sslfast.triton.correlation import forward as kernels
from sslfast.triton.correlation.gradients import Incoming, gradient_of
from sslfast.triton.correlation.products import Operands, Slots, form
from sslfast.triton.similarity.plan import cdiv

SUM_BLOCK = 1024
DIAGONAL_ROWS, DIAGONAL_FEATURES = 64, 32


def forward(arguments: Arguments, cache_elements: int) -> Sums:
    arguments = arguments.standardized()
    a = arguments.a
    if len(a) == 0:
        return no_rows(arguments, cache_elements)
    diagonal = a.new_empty(a.shape[1] if arguments.split_diagonal else 0, dtype=torch.float32)
    cache = a.new_empty(cache_elements, dtype=torch.float32)
    operands = Operands.of(arguments)
    apart = operands.gram and operands.split_diagonal
    spare = cdiv(len(diagonal), DIAGONAL_FEATURES) if apart else 0
    slots = form(operands.product, operands.kept(cache), diagonal, spare)
    if apart:
        _dots_of_columns(operands, diagonal, slots.sums[slots.programs :])
    return Sums(_total(slots), diagonal, cache)


def _dots_of_columns(operands: Operands, diagonal: Tensor, squares: Tensor) -> None:
    a, b = operands.a, operands.b
    launch(
        kernels.cross_frobenius_diagonal_kernel,
        (len(squares),),
        *(a, b, diagonal, squares, len(a), len(diagonal), a.stride(0), b.stride(0)),
        BLOCK_N=DIAGONAL_ROWS,
        BLOCK_D=DIAGONAL_FEATURES,
    )


def _total(slots: Slots) -> Tensor:
    total = slots.sums.new_empty(())
    launch(
        kernels.cross_frobenius_total_kernel,
        (1,),
        *(slots.sums, total, slots.programs, len(slots.sums)),
        BLOCK=SUM_BLOCK,
    )
    return total


def backward(
    dtotal: Tensor,
    ddiagonal: Tensor,
    arguments: Arguments,
    diagonal: Tensor,
    cache: Tensor,
    needs: tuple[bool, bool],
) -> Gradients:
    if len(arguments.a) == 0:
        return no_rows_gradients(arguments, needs)
    arguments = arguments.standardized()
    operands = Operands.of(arguments)
    kept = operands.kept(cache)
    incoming = Incoming(*(each.contiguous() for each in (dtotal, ddiagonal, diagonal)))
    wanted = needs[0], needs[1] and arguments.b is not None
    gradients = (
        gradient_of(operands, kept, incoming, is_a) if need else arguments.a.new_empty(0)
        for is_a, need in zip((True, False), wanted, strict=True)
    )
    return Gradients(*gradients)
