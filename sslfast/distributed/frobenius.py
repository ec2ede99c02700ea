r"""`cross_frobenius` over the rows of all ranks: ||A^T B||_F^2 of A = cat(a_0, ..., a_{W-1}).

Two forms of one value, n rows on each of W ranks, N = W n. S is half the gradient of the sum:

    gram    each rank gathers all rows and multiplies its own by them, (n, N):
            sum_r <a_r A^T, b_r B^T>,    S_a = (b_r B^T) A,    S_b = (a_r A^T) B
    direct  the ranks add up C = sum_r a_r^T b_r, (D, E):
            ||C||_F^2,                   S_a = b_r C^T,        S_b = a_r C

Both are formed in the forward pass, so the backward pass is elementwise and communicates nothing.
Neither holds its product whole: the gram form goes through the gathered rows, the direct form
through rows of C, a block at a time. A rank receives, but for the common factor (W - 1) / W,

    gram    N (D + E) operand elements                 (b is a: N D)
    direct  2 D E float32 or float64 numbers           (b is a: D^2 and half a block)

because an all-reduce moves its matrix twice. Half-precision operands are gathered as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslfast._core.correlation.frobenius import Route
from sslfast._core.numerics import accumulator, tile_operands
from sslfast.distributed.gather import check_equal_shapes, gather_without_gradient
from sslfast.distributed.world import world_size
from sslfast.ops.correlation.checks import check_frobenius
from sslfast.ops.correlation.frobenius import cross_frobenius

BLOCK_BYTES = 32 << 20  # of C that the ranks add up at a time
GATHERED_ROWS = 1024  # at least, that a rank multiplies by at a time


@overload
def cross_frobenius_of_ranks(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: Literal[False] = False,
    route: Route = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor: ...
@overload
def cross_frobenius_of_ranks(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: Literal[True],
    route: Route = "auto",
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]: ...


def cross_frobenius_of_ranks(
    a: Tensor,
    b: Tensor | None = None,
    *,
    split_diagonal: bool = False,
    route: Route = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sum of squares of A^T B, with A and B the rows of all ranks one after another.

    Args:
        a: (n, D) rows of this rank, the same shape and dtype on every rank; float16, bfloat16,
            float32 or float64.
        b: (n, E) rows of this rank; two dtypes promote to the wider. ``None``: b is a.
        split_diagonal: keep the diagonal of A^T B apart (D = E).
        route: ``"gram"`` (gathers the rows), ``"direct"`` (adds up A^T B), or ``"auto"``: the one
            that moves fewer bytes. Value and gradient are the same. On one process this is
            `sslfast.cross_frobenius`, and ``"auto"`` its own.
        group: process group; default: the world group.

    Returns:
        As `sslfast.cross_frobenius`, the same on every rank. This rank's rows receive the
        gradient of that one global value with respect to them; every rank must use the value in
        the same way. There is no factor W: see `sslfast.distributed.scale_gradient`.

    Raises:
        TypeError, ValueError: as `sslfast.cross_frobenius`; or the ranks hold different shapes
            (ValueError; compared as in `all_gather_rows`).
    """
    check_frobenius(a, b, split_diagonal, route)
    if world_size(group) == 1:
        if split_diagonal:
            return cross_frobenius(a, b, split_diagonal=True, route=route)
        return cross_frobenius(a, b, route=route)
    a, b = tile_operands(a, b)
    for rows in (a,) if b is None else (a, b):
        check_equal_shapes(rows, group)
    if route == "auto":
        route = cheaper_route(a, b, world_size(group))
    total: Tensor
    total, diagonal = _FrobeniusOfRanks.apply(  # type: ignore[no-untyped-call]
        a, b, split_diagonal, route, group, torch.is_grad_enabled()
    )
    return (total, diagonal) if split_diagonal else total


def cheaper_route(a: Tensor, b: Tensor | None, num_ranks: int) -> Route:
    """The route by which a rank receives fewer bytes, from its own rows (meta tensors will do)."""
    gathered = num_ranks * (a.numel() + (0 if b is None else b.numel())) * a.element_size()
    reduced = 2 * sum(block.elements for block in _blocks(a, b)) * accumulator(a.dtype).itemsize
    return "gram" if gathered <= reduced else "direct"


class _Block(NamedTuple):
    """Rows of C that are added up at a time; where b is a only from their diagonal on."""

    start: int
    stop: int
    first_column: int
    num_columns: int

    @property
    def elements(self) -> int:
        return (self.stop - self.start) * (self.num_columns - self.first_column)


def _blocks(a: Tensor, b: Tensor | None) -> Iterator[_Block]:
    dim = a.shape[1]
    width = dim if b is None else b.shape[1]
    height = max(1, BLOCK_BYTES // (width * accumulator(a.dtype).itemsize))
    for start in range(0, dim, height):
        yield _Block(start, min(start + height, dim), start if b is None else 0, width)


class _Parts(NamedTuple):
    """Sum of squares, diagonal of C ((0,) where it stays in the sum), and half the gradients."""

    total: Tensor
    diagonal: Tensor
    half_da: Tensor | None
    half_db: Tensor | None


class _FrobeniusOfRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor | None,
        split_diagonal: bool,
        route: Route,
        group: dist.ProcessGroup | None,
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        form = _by_gram if route == "gram" else _by_product
        needs = tuple(learns and need for need in ctx.needs_input_grad[:2])
        with torch.autocast(a.device.type, enabled=False):
            parts = form(a, b, split_diagonal, group, needs)
        ctx.save_for_backward(a, b, parts.half_da, parts.half_db)
        ctx.split_diagonal = split_diagonal
        return parts.total, parts.diagonal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, ddiagonal: Tensor) -> tuple[Tensor | None, ...]:
        a, b, half_da, half_db = ctx.saved_tensors
        sides = 2 if b is None else 1

        def gradient(half: Tensor | None, other: Tensor) -> Tensor | None:
            if half is None:
                return None
            whole = half * (2 * sides * dtotal)  # (n, D)
            if ctx.split_diagonal:
                whole.addcmul_(other.to(whole.dtype), sides * ddiagonal)
            return whole.to(other.dtype)

        return gradient(half_da, a if b is None else b), gradient(half_db, a), *[None] * 4


def _by_gram(
    a: Tensor,
    b: Tensor | None,
    split_diagonal: bool,
    group: dist.ProcessGroup | None,
    needs: tuple[bool, ...],
) -> _Parts:
    """Own rows times the rows of all ranks, a chunk of those at a time."""
    wide = accumulator(a.dtype)
    all_a = gather_without_gradient(a, group)  # (N, D)
    all_b = all_a if b is None else gather_without_gradient(b, group)  # (N, E)
    own_a = a.to(wide)  # (n, D)
    own_b = own_a if b is None else b.to(wide)  # (n, E)
    half_da = torch.zeros_like(own_a) if needs[0] else None
    half_db = torch.zeros_like(own_b) if needs[1] else None
    sums = [own_a.new_zeros(())]
    size = max(len(a), GATHERED_ROWS)
    for start in range(0, len(all_a), size):
        chunk_a = all_a[start : start + size].to(wide)  # (m, D)
        gram_a = own_a @ chunk_a.T  # (n, m)
        chunk_b, gram_b = chunk_a, gram_a
        if b is not None:
            chunk_b = all_b[start : start + size].to(wide)  # (m, E)
            gram_b = own_b @ chunk_b.T  # (n, m)
        if half_da is not None:
            half_da.addmm_(gram_b, chunk_a)
        if half_db is not None:
            half_db.addmm_(gram_a, chunk_b)
        sums.append((gram_a * gram_b).sum())
    diagonal = (own_a * own_b).sum(0) if split_diagonal else own_a.new_empty(0)  # (D,)
    reduced = torch.cat((torch.stack(sums).sum().reshape(1), diagonal))  # (1 + D,)
    dist.all_reduce(reduced, group=group)
    total, diagonal = reduced[0].clone(), reduced[1:].clone()
    if split_diagonal:
        total -= diagonal.square().sum()
        for half, other in ((half_da, own_b), (half_db, own_a)):
            if half is not None:
                half.addcmul_(other, diagonal, value=-1)
    return _Parts(total, diagonal, half_da, half_db)


def _by_product(
    a: Tensor,
    b: Tensor | None,
    split_diagonal: bool,
    group: dist.ProcessGroup | None,
    needs: tuple[bool, ...],
) -> _Parts:
    """A^T B summed over the ranks, a block of its rows at a time."""
    wide = accumulator(a.dtype)
    own_a = a.to(wide)  # (n, D)
    own_b = own_a if b is None else b.to(wide)  # (n, E)
    half_da = torch.zeros_like(own_a) if needs[0] else None
    half_db = torch.zeros_like(own_b) if needs[1] else None
    sums, diagonals = [], [own_a.new_empty(0)]
    for start, stop, first, _ in _blocks(a, b):
        left, right = own_a[:, start:stop], own_b[:, first:]  # (n, h), (n, E - first)
        product = left.T @ right  # (h, E - first)
        dist.all_reduce(product, group=group)
        if split_diagonal:
            square = product[:, start - first :]  # begins at the block's diagonal
            diagonals.append(square.diagonal().clone())
            square.diagonal().zero_()
        sums.append(product.square().sum())
        if half_da is not None:
            half_da[:, start:stop].addmm_(right, product.T)
        if b is None:  # C is symmetric: what lies right of the block lies below it as well
            beyond = product[:, stop - start :]  # (h, D - stop)
            sums.append(beyond.square().sum())
            if half_da is not None:
                half_da[:, stop:].addmm_(left, beyond)
        elif half_db is not None:
            half_db.addmm_(left, product)
    return _Parts(torch.stack(sums).sum(), torch.cat(diagonals), half_da, half_db)
