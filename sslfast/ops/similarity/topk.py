r"""The k keys that are most similar to each query, and how similar they are.

    s_ij = <q_i, k_j>
    values_i1 >= ... >= values_ik   the k largest s_ij over the keys with key_id_j != query_id_i
    indices_i1, ..., indices_ik     their j; of equal s_ij the lower j first

Sources: weighted kNN classification (Wu et al. 2018, section 3.4), nearest neighbours as positives
(NNCLR, Dwibedi et al. 2021, equation 1), the hardest negatives (GroCo, Shvetsova et al. 2023,
section 3; MoCHi, Kalantidis et al. 2020, section 3.2). The indices are piecewise constant; with
v = dL/dvalues the gradient is that of k chosen products a query:

    dq_i = sum_r v_ir k_{indices_ir}        dk_j = sum_{(i, r): indices_ir = j} v_ir q_i

Never materialised: the N x M similarities, nor (N, k, D) copies of the chosen keys. Forward costs
2 N M D operations and reads the keys once for every block of queries; backward 4 N k D. A tile of
similarities is compared with each query's worst neighbour so far, which few of them exceed:
k (1 + log(M / k)) of M in random order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import native, wanted
from sslfast._core.numerics import FLOATS, accumulator, tile_operands
from sslfast._core.similarity.topk import MISSING, Arguments, Gradients, Neighbours
from sslfast._registry import Implementation, Primitive, lazily, register_primitive
from sslfast.ops.similarity import topk_cases as cases
from sslfast.ops.similarity import topk_cost as cost
from sslfast.ops.similarity.checks import check_neighbours, check_topk
from sslfast.ops.similarity.topk_gradient import backward


def reference(
    queries: Tensor,
    keys: Tensor | None = None,
    k: int = 1,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula in plain torch; half-precision rows are widened to float32 first."""
    wide = accumulator(queries.dtype)
    if keys is None:
        keys, key_ids = queries, query_ids
    similarity = queries.to(wide) @ keys.to(wide).T  # (N, M)
    if query_ids is not None and key_ids is not None:
        excluded = query_ids[:, None] == key_ids[None, :]  # (N, M)
        similarity = similarity.masked_fill(excluded, -torch.inf)  # (N, M)
    values, order = similarity.sort(dim=1, descending=True, stable=True)  # (N, M)
    values, order = values[:, :k].contiguous(), order[:, :k]  # (N, k)
    return values, order.masked_fill(values == -torch.inf, MISSING)  # (N, k)


def similarity_topk(
    queries: Tensor,
    keys: Tensor | None = None,
    k: int = 1,
    *,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k keys that are most similar to each query, best first.

    Args:
        queries: (N, D) rows, normalised or not; float16, bfloat16, float32 or float64.
        keys: (M, D) rows; ``None``: the queries themselves, where ``query_ids=torch.arange(N)``
            keeps each from finding itself. Two dtypes promote to the wider.
        k: neighbours a query, 1 to M.
        query_ids: (N,) integers; a key with the query's id is left out. Where the keys are the
            queries they are the keys' ids too.
        key_ids: (M,) integers, together with `query_ids`.

    Returns:
        (N, k) values, descending, in float32 (float64 for float64 inputs), and (N, k) int64 rows of
        `keys`. Equal similarities come in the order of their keys. Values have a gradient with
        respect to queries and keys, indices have none. Without queries both are empty.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: shapes or devices do not match, k is not within 1 to M, a query has fewer than k
            keys that it does not exclude, or a similarity is NaN. The last two are read from the
            values: on CUDA under ``SSLFAST_CHECK=1`` only. Otherwise a neighbour that is missing
            has value -inf and index -1, and NaN counts as the largest, as in `torch.sort`.

    Differs from others: `torch.topk` of a product, which DINO's kNN and lightly's `knn_predict`
    use, promises no order among equal similarities, and holds all N x M of them. Half-precision
    rows accumulate in float32 and values stay float32; under autocast rows are rounded to the
    autocast dtype, as a matrix product would. A similarity of -inf (overflow) is no neighbour. A
    second derivative raises.
    """
    check_topk(queries, keys, k, query_ids, key_ids)
    queries, keys = tile_operands(queries, keys)
    arguments = Arguments(
        queries,
        keys,
        None if query_ids is None else query_ids.to(torch.int64),
        None if key_ids is None else key_ids.to(torch.int64),
        k,
    )
    values, indices = _forward(*arguments, _backends.forced())
    return values, indices


@torch.library.custom_op(
    "sslfast::similarity_topk",
    mutates_args=(),
    schema="(Tensor queries, Tensor? keys, Tensor? query_ids, Tensor? key_ids, SymInt k,"
    " str backend) -> (Tensor values, Tensor indices)",
)
def _forward(*given: Any) -> Neighbours:
    *fields, backend = given
    arguments = Arguments(*fields)
    choice = _backends.choose(SPEC, backend, arguments.queries, arguments.keys)
    if len(arguments.queries) == 0:
        return _empty_neighbours(arguments)
    found = Neighbours(*choice.forward(arguments))
    check_neighbours(found, arguments)
    return found


@_forward.register_fake
def _(*given: Any) -> Neighbours:
    *fields, _backend = given
    return _empty_neighbours(Arguments(*fields))


def _empty_neighbours(arguments: Arguments) -> Neighbours:
    queries, *_, k = arguments
    shape = (queries.shape[0], k)
    return Neighbours(
        queries.new_empty(shape, dtype=accumulator(queries.dtype)),
        queries.new_empty(shape, dtype=torch.int64),
    )


@torch.library.custom_op(
    "sslfast::similarity_topk_backward",
    mutates_args=(),
    schema="(Tensor dvalues, Tensor queries, Tensor? keys, Tensor indices, bool need_queries,"
    " bool need_keys, str backend) -> (Tensor dqueries, Tensor dkeys)",
)
def _backward(*given: Any) -> Gradients:
    *arguments, backend = given
    queries, keys = arguments[1:3]
    choice = _backends.choose(SPEC, backend, queries, keys)
    return Gradients(*(each.to(queries.dtype) for each in choice.backward(*arguments)))


@_backward.register_fake
def _(*given: Any) -> Gradients:
    _, queries, keys, _, need_queries, need_keys, _ = given
    return Gradients(
        queries.new_empty(queries.shape if need_queries else 0),
        queries.new_empty(keys.shape if keys is not None and need_keys else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, keys, _, _, _, ctx.backend = inputs
    ctx.save_for_backward(queries, keys, output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dvalues: Tensor | None, dindices: None) -> tuple[Tensor | None, ...]:
    if dvalues is None:
        return (None,) * 6
    queries, keys, indices = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    gradients = _backward(dvalues, queries, keys, indices, *needs, ctx.backend)
    return wanted(gradients, ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _reference_forward(arguments: Arguments) -> Neighbours:
    queries, keys, query_ids, key_ids, k = arguments
    with torch.autocast(queries.device.type, enabled=False):
        return Neighbours(*reference(queries, keys, k, query_ids=query_ids, key_ids=key_ids))


def _too_many(queries: Tensor, keys: Tensor | None = None) -> str | None:
    count = len(queries if keys is None else keys)
    return None if count < 1 << 30 else f"{count} keys do not fit an index of 32 bits"


def _cpu_backward(*arguments: Any, isa: int) -> Gradients:
    return backward(*arguments)


_triton = lazily("sslfast.triton.similarity.topk", FLOATS[:3], _too_many)

SPEC = register_primitive(
    Primitive(
        name="similarity_topk",
        equation="values_i, indices_i = the k largest <q_i, k_j> over key_id_j != query_id_i",
        never_builds="N x M",
        serves=("kNN evaluation", "GroCo", "NNCLR", "MoCHi", "KoLeo"),
        reference=reference,
        function=similarity_topk,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "triton": replace(_triton, backward=backward),
            "cpu": Implementation(
                native("similarity_topk_cpu", multiplies=True), _cpu_backward, FLOATS
            ),
            "reference": Implementation(_reference_forward, backward, FLOATS),
        },
        samples=cases.SAMPLES,
        differentiable=("queries", "keys"),
        flops=cost.flops,
        bytes=cost.bytes_moved,
        peak_bytes=cost.peak_bytes,
        properties=cases.PROPERTIES,
        products=True,
        memory=cases.MEMORY,
    )
)
