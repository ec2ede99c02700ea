"""The products of `cross_frobenius`: their operands, their place in the cache, how they are formed.

The cache holds a header, of which float16 has the scale of each product, and the products in the
dtype of the operands: the Grams of a and of b, or a^T b (without its diagonal where that is split
off). Their rows are padded with zeros, so that a contraction over them has no ragged end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sslfast._core.correlation import frobenius as layout
from sslfast._core.correlation.frobenius import Arguments
from sslfast.triton._launch import launch, target
from sslfast.triton.correlation import forward as kernels
from sslfast.triton.correlation import plan as plan
from sslfast.triton.similarity.plan import cdiv, precision


@dataclass(frozen=True)
class Kept:
    """Products as the backward pass reads them.

    Args:
        matrices: each (rows, padded columns), in the dtype of the operands.
        units: (2, 4) whose first column is what an element of each is to be multiplied by, 16
            bytes apart; float16 only.
    """

    matrices: tuple[Tensor, ...]
    units: Tensor


@dataclass(frozen=True)
class Product:
    """left right^T or, strided, left^T right: the contraction then runs over rows.

    Args:
        left, right: (length, padded contraction); strided (contraction, padded length).
        shape: rows and columns of the product.
        both: not this product but left left^T and right right^T.
        symmetric: tiles below the diagonal follow from those above.
        first_row: of the product, within the matrix whose diagonal is split off.
    """

    left: Tensor
    right: Tensor
    shape: tuple[int, int]
    strided: bool
    both: bool = False
    symmetric: bool = False
    split_diagonal: bool = False
    first_row: int = 0

    @property
    def count(self) -> int:
        return 2 if self.both else 1

    @property
    def depths(self) -> tuple[int, int]:
        """Contraction of the first and of the second product."""
        if self.strided:
            return len(self.left), len(self.left)
        return self.left.shape[1], self.right.shape[1]

    @property
    def lengths(self) -> tuple[int, int]:
        """Rows of left and right that may be read."""
        return (self.left.shape[1], self.right.shape[1]) if self.strided else self.shape


@dataclass(frozen=True)
class Operands:
    """The matrices as the kernels read them: 16 bytes at a time, zeros behind the features."""

    a: Tensor
    b: Tensor  # a itself in the symmetric form
    dims: tuple[int, int]  # D and E
    symmetric: bool
    split_diagonal: bool
    gram: bool

    @staticmethod
    def of(arguments: Arguments) -> Operands:
        a = _aligned(arguments.a)
        b = a if arguments.b is None else _aligned(arguments.b)
        symmetric, gram = arguments.b is None, arguments.route == "gram"
        return Operands(a, b, arguments.widths, symmetric, arguments.split_diagonal, gram)

    @property
    def product(self) -> Product:
        if self.gram:
            shape = (len(self.a), len(self.a))
            return Product(
                self.a, self.b, shape, strided=False, both=not self.symmetric, symmetric=True
            )
        return Product(
            self.a,
            self.b,
            self.dims,
            strided=True,
            symmetric=self.symmetric,
            split_diagonal=self.split_diagonal,
        )

    def kept(self, cache: Tensor) -> Kept | None:
        """Where the products lie in a cache; None where it has no room for them."""
        if cache.numel() == 0:
            return None
        product = self.product
        rows, stride = product.shape[0], layout.padded(product.shape[1])
        room = cache[layout.CACHE_HEADER :].view(self.a.dtype)
        matrices = room[: product.count * rows * stride].view(product.count, rows, stride)
        return Kept(tuple(matrices), cache[: layout.CACHE_HEADER].view(2, -1))


def _aligned(rows: Tensor) -> Tensor:
    """Rows that are read 16 bytes at a time; if need be a copy, with zeros behind the features."""
    num_rows, dim = rows.shape
    width = layout.padded(dim)
    step = rows.stride(0) * rows.element_size()
    if dim == width and rows.stride(1) == 1 and (step | rows.data_ptr()) % 16 == 0:
        return rows
    copy = rows.new_zeros(num_rows, width)
    copy[:, :dim] = rows
    return copy


@dataclass(frozen=True)
class Slots:
    """Sums of squares: those of the products' programs, and room behind these."""

    sums: Tensor
    programs: int


@dataclass(frozen=True)
class _Tiling:
    """How a product is cut into tiles, and these among programs."""

    tiles: plan.Tiles
    k: int
    row_blocks: int
    column_blocks: int
    count: int  # of one product
    work: plan.Work
    in_parts: bool
    scaled: bool

    @staticmethod
    def of(product: Product, kept: Kept | None) -> _Tiling:
        left, right = product.left, product.right
        chip, dtype = target(left), left.dtype
        tiles = plan.forward_tiles(chip, dtype, max(product.shape))
        k = min(tiles.k, *(layout.padded(depth) for depth in product.depths))
        row_blocks, column_blocks = (cdiv(length, tiles.m) for length in product.shape)
        count = row_blocks * column_blocks
        if product.symmetric:
            count = row_blocks * (row_blocks + 1) // 2
        scaled = kept is not None and dtype == torch.float16
        in_parts = product.both or scaled
        room = max(layout.GPU_PARTS_BYTES, (left.numel() + right.numel()) * left.element_size())
        most = room // (4 * tiles.m * tiles.n * product.count)
        work = plan.divide(chip, count, product.count, max(product.depths), k, in_parts, most)
        if scaled:  # the scale is known when all tiles are there
            work = replace(work, at_once=count)
        in_parts = in_parts or work.splits > 1
        return _Tiling(tiles, k, row_blocks, column_blocks, count, work, in_parts, scaled)

    @property
    def slots(self) -> int:
        """Programs a tile that sum squares."""
        return self.tiles.m // plan.COMBINE_ROWS if self.in_parts else 1


def form(
    product: Product, kept: Kept | None, diagonal: Tensor | None = None, spare: int = 0
) -> Slots:
    """Compute products; store them in `kept`, the sums of their squares in slots.

    Args:
        diagonal: (D,) for the diagonal of the product; None: neither that nor sums are wanted.
        spare: slots behind those of the programs.
    """
    left, tiling = product.left, _Tiling.of(product, kept)
    empty = partial(left.new_empty, dtype=torch.float32)
    parts = empty(_elements_of_parts(product, tiling))
    programs = tiling.count * tiling.slots
    sums = empty(programs + spare if diagonal is not None else 0)
    largest = left.new_zeros(2 if tiling.scaled else 0, dtype=torch.int32)
    step = tiling.work.at_once if tiling.in_parts else tiling.count
    for first in range(0, tiling.count, step):
        held = range(first, min(first + step, tiling.count))
        out = (parts, largest, sums, left if diagonal is None else diagonal)
        _form_tiles(product, tiling, kept, held, *out)
    return Slots(sums, programs)


def _elements_of_parts(product: Product, tiling: _Tiling) -> int:
    if not tiling.in_parts:
        return 0
    tiles, work = tiling.tiles, tiling.work
    return work.splits * product.count * work.at_once * tiles.m * tiles.n


def _form_tiles(
    product: Product,
    tiling: _Tiling,
    kept: Kept | None,
    held: range,
    parts: Tensor,
    largest: Tensor,
    sums: Tensor,
    diagonal: Tensor,
) -> None:
    """The tiles `held`, from their product to their sums."""
    left, right, tiles, work = product.left, product.right, tiling.tiles, tiling.work
    matrices = (left, left) if kept is None else (kept.matrices[0], kept.matrices[-1])
    shape = (product.first_row, *product.shape, matrices[0].stride(0))
    blocks = (tiling.row_blocks, tiling.column_blocks, held.start, len(held))
    summed = sums.numel() > 0
    constants = {
        "PRODUCTS": product.count,
        "TRIANGLE": product.symmetric,
        "SPLIT_DIAGONAL": product.split_diagonal,
        "SUMS": summed,
        "KEEP": kept is not None,
        "SCALED": tiling.scaled,
        "BLOCK": tiles.m,
    }
    launch(
        kernels.cross_frobenius_fwd_kernel,
        (len(held) * product.count * work.splits,),
        *(left, right, parts, largest, sums, diagonal, matrices[0], *shape),
        *product.depths,
        work.depth,
        *product.lengths,
        *(left.stride(0), right.stride(0)),
        *blocks,
        STRIDED=product.strided,
        IN_PARTS=tiling.in_parts,
        BLOCK_K=tiling.k,
        CHAIN=plan.chain(target(left), left.dtype, tiling.k),
        PRECISION=precision(left.dtype, target(left)),
        **constants,
        **tiles.launch(),
    )
    if tiling.in_parts:
        units = sums if kept is None else kept.units
        launch(
            kernels.cross_frobenius_combine_kernel,
            (len(held) * tiling.slots,),
            *(parts, largest, sums, diagonal, *matrices, units, *shape),
            *blocks,
            *(work.splits, (work.splits - 1).bit_length()),
            ROWS=plan.COMBINE_ROWS,
            **constants,
            num_warps=4,
            num_stages=1,
        )
