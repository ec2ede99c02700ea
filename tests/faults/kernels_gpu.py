"""Faults in the Triton kernels, run by the interpreter, and in CUDA C++, run by its emulation."""

from __future__ import annotations

from fault import Fault

TRITON, CUDA = "sslfast/triton/", "csrc/cuda/"


def triton(primitive: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    files = "registry/test_numbers.py registry/test_gradients.py registry/test_layout.py"
    tests = f"{files} -k 'triton and {primitive}'"
    return Fault(kind, TRITON + file, where, old, new, tests, interpreted=True)


def cuda(primitive: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    files = "backends/cuda/test_cuda_emulated.py" + (
        "" if primitive == "l2_normalize" else " backends/cuda/test_cuda_sorting.py"
    )
    return Fault(kind, CUDA + file, where, old, new, files)


FAULTS = (
    triton(
        "l2_normalize",
        "mask of the last rows missing",
        "rows/l2_normalize.py",
        "tl.store(norm + rows, length, mask={})",
        "rows < num_rows",
        "rows + 1 < num_rows",
    ),
    triton(
        "l2_normalize",
        "edge off by one (features)",
        "rows/l2_normalize.py",
        "    inside = (rows < num_rows)[:, None] & {}\n    return",
        "(features < dim)[None, :]",
        "(features < dim - 1)[None, :]",
    ),
    triton(
        "l2_normalize",
        "wrong sign in a gradient (Triton rows)",
        "rows/l2_normalize.py",
        "tl.where(below, dy, {})",
        "dy - y * product",
        "dy + y * product",
    ),
    triton(
        "l2_normalize",
        "stride of another tensor",
        "rows/l2_normalize.py",
        "dy = dnormalized + rows[:, None] * {}",
        "dstride",
        "dim",
    ),
    triton(
        "similarity_logsumexp",
        "mask beyond the last key missing",
        "similarity/tiles.py",
        "return {}\n\n\n@triton.jit\ndef weight_of",
        'tl.where(keys < num_keys, offset, float("-inf"))',
        "offset",
    ),
    triton(
        "similarity_logsumexp",
        "id compare swapped (Triton)",
        "similarity/forward.py",
        "                e = tl.where({}, 0.0, e)",
        "row_ids[:, None] == column_ids[None, :]",
        "row_ids[:, None] != column_ids[None, :]",
    ),
    triton(
        "similarity_logsumexp",
        "diagonal counted twice (Triton)",
        "similarity/forward.py",
        "col_sum = {}",
        "tl.where(i == j, 0.0, col_sum)",
        "col_sum",
    ),
    triton(
        "similarity_logsumexp",
        "accumulator of the last block is stale (Triton)",
        "similarity/forward.py",
        "mask=(columns < num_keys) & {}, other=0.0)",
        "(i > first_i)",
        "(i >= first_i)",
    ),
    triton(
        "similarity_logsumexp",
        "sum in half precision",
        "similarity/forward.py",
        "row_acc += {}",
        "tl.sum(e, 1)",
        "tl.sum(e.to(tl.bfloat16).to(tl.float32), 1)",
    ),
    triton(
        "similarity_topk",
        "mask of excluded pairs missing (Triton top k)",
        "similarity/topk_kernels.py",
        "valid = valid & {}\n        ordered",
        "(row_ids[:, None] != column_ids[None, :])",
        "(row_ids[:, None] == row_ids[:, None])",
    ),
    triton(
        "similarity_topk",
        "last key of a split left out",
        "similarity/topk_kernels.py",
        "last_j = tl.minimum((split + 1) * split_blocks, {})",
        "tl.cdiv(num_keys, BLOCK_N)",
        "num_keys // BLOCK_N",
    ),
    triton(
        "similarity_topk",
        "ties in the wrong order (Triton)",
        "similarity/topk_kernels.py",
        "            index = {}\n            tile",
        "INDEX - columns.to(tl.int64)",
        "columns.to(tl.int64)",
    ),
    triton(
        "standardize",
        "rows of the last tile counted twice",
        "rows/standardize_forward.py",
        "delta = tl.where({}, tile - mean_acc, 0.0)\n        mean_acc",
        "(rows < last)[:, None]",
        "(rows < last + 1)[:, None]",
    ),
    triton(
        "standardize",
        "degrees of freedom ignored (Triton)",
        "rows/standardize.py",
        "*(float(num_rows), float(tiles.group_rows), float({})),\n        **MERGED",
        "num_rows - rule.ddof",
        "num_rows",
    ),
    triton(
        "cross_frobenius",
        "mirrored tiles counted once (Triton)",
        "correlation/forward.py",
        "total = tl.where(off_diagonal, {} * total, total)",
        "2.0",
        "1.0",
    ),
    triton(
        "cross_frobenius",
        "mask of the diagonal missing",
        "correlation/forward.py",
        "        tile = {}\n    if SUMS",
        "tl.where(on_diagonal, 0.0, tile)",
        "tile",
    ),
    cuda(
        "l2_normalize",
        "edge off by one (last pack)",
        "rows/rows.cuh",
        "if ({}) held(pack, slot);",
        "pack < packs",
        "pack < packs - 1",
    ),
    cuda(
        "l2_normalize",
        "part of a sum left out",
        "rows/rows.cuh",
        "for (int warp = 0; warp < int(blockDim.x) / kWarp{}; ++warp)",
        "",
        " - 1",
    ),
    cuda(
        "l2_normalize",
        "rows beyond the registers forgotten",
        "rows/rows.cuh",
        "for (unsigned pack = threadIdx.x + {} * blockDim.x;",
        "kHeld",
        "(kHeld + 1)",
    ),
    cuda(
        "l2_normalize",
        "saturation missing",
        "rows/l2_normalize.cuh",
        "if (kMost > 0 && {}) return",
        "unit.clamped",
        "unit.clamped && dx < 0",
    ),
    cuda(
        "l2_normalize",
        "stride of another tensor (CUDA)",
        "rows/l2_normalize.cuh",
        "dy_row = dy + row * {}, *x_row",
        "dy_stride",
        "x_stride",
    ),
    cuda(
        "sorting",
        "layers in the wrong order",
        "sorting/team.cuh",
        "for (int layer = layers - 1; layer >= {}; --layer) run(layer, f);",
        "0",
        "1",
    ),
    cuda(
        "sorting",
        "edge off by one (group, CUDA)",
        "sorting/team.cuh",
        "return of.bounds[g] <= rank && {};",
        "rank < of.bounds[g + 1]",
        "rank <= of.bounds[g + 1]",
    ),
    cuda(
        "sorting",
        "memory of another block",
        "sorting/team.cuh",
        "static_cast<A*>(of.scratch) + {} * of.scratch_stride",
        "blockIdx.x",
        "(blockIdx.x / 2)",
    ),
)
