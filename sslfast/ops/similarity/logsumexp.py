r"""Log-sum-exp of scaled similarities, over the keys that are not excluded.

    rows_i = log sum_{j: key_id_j != query_id_i} exp(s_ij),    s_ij = scale_i <q_i, k_j> + bias_j
    cols_j = log sum_{i: key_id_j != query_id_i} exp(s_ij)

Sources: the denominator of NT-Xent (Chen et al. 2020, equation 1), InfoNCE (van den Oord et al.
2018, equation 4), MoCo (He et al. 2020, equation 1), CLIP (Radford et al. 2021, figure 3). With
r and c the gradients of rows and cols, everything follows from one matrix G that is never stored:

    G_ij = r_i exp(s_ij - rows_i) + c_j exp(s_ij - cols_j)      (0 where excluded)
    dq_i = scale_i sum_j G_ij k_j       dscale_i = sum_j G_ij <q_i, k_j>
    dk_j = sum_i scale_i G_ij q_i       dbias_j  = sum_i G_ij

Symmetric form (``keys=None``): s_ij = s_ji, so the tiles above the diagonal serve both sides and
G + G^T is the one gradient. A row whose every key is excluded is -inf and has zero gradient.

Never materialised: anything of N x M elements, but for exponentials that fit `cache_bytes`. With
U = 2 N M D operations, rows cost U forward and 3 U backward (recompute and two products), 2 U with
kept exponentials; 2 U in all where only queries learn; the symmetric form half of each. Memory
traffic is O((N + M) D) when tiles stay in cache.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import grouped, native, wanted
from sslfast._core.checks import check_finite
from sslfast._core.numerics import FLOATS, accumulator, tile_operands
from sslfast._core.similarity.logsumexp import Arguments, Gradients, Needs, Sums, no_queries
from sslfast._core.similarity.logsumexp_keep import Keep, cache_elements, what_to_keep
from sslfast._registry import Implementation, Primitive, lazily, register_primitive
from sslfast.ops.similarity import logsumexp_cases as cases
from sslfast.ops.similarity import logsumexp_cost as cost
from sslfast.ops.similarity.checks import check_logsumexp, scale_tensor
from sslfast.ops.similarity.logsumexp_gradient import reference_backward


def reference(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    columns: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula in plain torch; half-precision rows are widened to float32 first."""
    wide = accumulator(queries.dtype)
    if keys is None:
        keys, key_ids = queries, query_ids
    similarity = queries.to(wide) @ keys.to(wide).T  # (N, M)
    scale = torch.as_tensor(scale, dtype=wide, device=queries.device)  # () or (N,)
    logits = scale.reshape(-1, 1) * similarity  # (N, M)
    if bias is not None:
        logits = logits + bias.to(wide)  # (N, M)
    if query_ids is not None and key_ids is not None:
        excluded = query_ids[:, None] == key_ids[None, :]  # (N, M)
        logits = logits.masked_fill(excluded, -torch.inf)  # (N, M)
    rows = logits.logsumexp(1)  # (N,)
    return (rows, logits.logsumexp(0)) if columns else rows  # (N,), (M,)


@overload
def similarity_logsumexp(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    columns: Literal[False] = False,
) -> Tensor: ...
@overload
def similarity_logsumexp(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    columns: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def similarity_logsumexp(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    columns: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-sum-exp of each query's similarities to the keys that it does not exclude.

    Args:
        queries: (N, D) rows, normalised or not; float16, bfloat16, float32 or float64.
        keys: (M, D) rows. ``None``: the symmetric form, the keys are the queries, each pair is
            computed once and both sides share one gradient. Two dtypes promote to the wider.
        scale: inverse temperature; a number, a one-element tensor (may be learnable), or a (N,)
            tensor with one value a query (rows of two matrices only).
        bias: (M,) added to each key's logits (rows of two matrices only).
        query_ids: (N,) integers; a key with the query's id is left out of its sum. In the
            symmetric form they are the keys' ids too.
        key_ids: (M,) integers, together with `query_ids`.
        columns: also sum over the queries of each key, in the same pass (two matrices, one
            scale, no bias).

    Returns:
        (N,) rows, or (N,) rows and (M,) columns, in float32 (float64 for float64 inputs); -inf,
        with zero gradient, where every key is excluded. Without queries the rows are empty.

    Raises:
        TypeError: an argument is not a tensor of the right kind.
        ValueError: shapes or devices do not match, there are no keys, `scale` or `bias` is not
            finite (on CUDA values are read under ``SSLFAST_CHECK=1`` only), or options are
            combined that have no shared exponential.

    Differs from `torch.logsumexp` of a product: half-precision rows accumulate in float32 and
    the result stays float32; under autocast rows are rounded to the autocast dtype, as a matrix
    product would. A second derivative raises.
    """
    check_logsumexp(queries, keys, scale, bias, query_ids, key_ids, columns)
    queries, keys = tile_operands(queries, keys)
    wide = accumulator(queries.dtype)
    arguments = Arguments(
        queries,
        keys,
        scale_tensor(scale, queries, wide),
        None if bias is None else bias.to(wide),
        None if query_ids is None else query_ids.to(torch.int64),
        None if key_ids is None else key_ids.to(torch.int64),
        columns,
    )
    gpu = _backends.on_gpu(queries)
    keep = what_to_keep(arguments, gpu)
    room = cache_elements(arguments, keep, gpu)
    rows, cols, _ = _forward(*arguments, int(keep), room, _backends.forced())
    return (rows, cols) if columns else rows


_ARGUMENTS = (
    "Tensor queries, Tensor? keys, Tensor scale, Tensor? bias, Tensor? query_ids, "
    "Tensor? key_ids, bool columns"
)


@torch.library.custom_op(
    "sslfast::similarity_logsumexp",
    mutates_args=(),
    # The size of the cache is part of the graph: compiled code on disk is found by its graph, and
    # must not outlive a change of the layout.
    schema=f"({_ARGUMENTS}, int keep, int cache_elements, str backend)"
    " -> (Tensor rows, Tensor cols, Tensor cache)",
)
def _forward(*given: Any) -> Sums:
    *fields, keep, cache_elements, backend = given
    arguments = Arguments(*fields)
    check_finite("scale", arguments.scale)
    if arguments.bias is not None:
        check_finite("bias", arguments.bias)
    choice = _backends.choose(SPEC, backend, arguments.queries, arguments.keys)
    if len(arguments.queries) == 0:
        return _empty_sums(arguments, cache_elements)
    return Sums(*choice.forward(arguments, Keep(keep), cache_elements))


@_forward.register_fake
def _(*given: Any) -> Sums:
    *fields, _keep, cache_elements, _backend = given
    return _empty_sums(Arguments(*fields), cache_elements)


def _empty_sums(arguments: Arguments, cache_elements: int) -> Sums:
    empty = arguments.scale.new_empty
    return Sums(
        empty(len(arguments.queries)),
        empty(arguments.num_keys if arguments.columns else 0),
        empty(cache_elements),
    )


_GROUPS = 2, Arguments, Sums, 1, Needs, 1  # of the backward op's arguments


@torch.library.custom_op(
    "sslfast::similarity_logsumexp_backward",
    mutates_args=(),
    schema=f"(Tensor drows, Tensor dcols, {_ARGUMENTS}, Tensor rows, Tensor cols, Tensor cache,"
    " int keep, bool need_queries, bool need_keys, bool need_scale, bool need_bias,"
    " str backend) -> (Tensor dqueries, Tensor dkeys, Tensor dscale, Tensor dbias)",
)
def _backward(*given: Any) -> Gradients:
    (drows, dcols), arguments, sums, (keep,), needs, (backend,) = grouped(given, *_GROUPS)
    choice = _backends.choose(SPEC, backend, arguments.queries, arguments.keys)
    if len(arguments.queries) == 0:
        return no_queries(arguments, needs)
    gradients = choice.backward(drows, dcols, arguments, sums, Keep(keep), needs)
    dqueries, dkeys, dscale, dbias = gradients
    dtype = arguments.queries.dtype
    return Gradients(dqueries.to(dtype), dkeys.to(dtype), dscale, dbias)


@_backward.register_fake
def _(*given: Any) -> Gradients:
    _, arguments, _, _, needs, _ = grouped(given, *_GROUPS)
    queries, keys, scale, bias, *_ = arguments
    return Gradients(
        queries.new_empty(queries.shape if needs.queries else 0),
        queries.new_empty(keys.shape if keys is not None and needs.keys else 0),
        scale.new_empty(scale.shape if needs.scale else 0),
        scale.new_empty(bias.shape if bias is not None and needs.bias else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.columns, ctx.keep, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, drows: Tensor | None, dcols: Tensor | None, dcache: None
) -> tuple[Tensor | None, ...]:
    *tensors, rows, cols, cache = ctx.saved_tensors
    drows = torch.zeros_like(rows) if drows is None else drows
    dcols = torch.zeros_like(cols) if dcols is None else dcols
    needs = ctx.needs_input_grad[:4]
    gradients = _backward(
        drows, dcols, *tensors, ctx.columns, rows, cols, cache, ctx.keep, *needs, ctx.backend
    )
    return wanted(gradients, ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _reference_forward(arguments: Arguments, keep: Keep, cache_elements: int) -> Sums:
    queries, keys, scale, bias, query_ids, key_ids, columns = arguments
    ids = {"query_ids": query_ids, "key_ids": key_ids}
    with torch.autocast(queries.device.type, enabled=False):
        outputs = reference(queries, keys, scale=scale, bias=bias, columns=columns, **ids)
    rows, cols = outputs if isinstance(outputs, tuple) else (outputs, scale.new_empty(0))
    return Sums(rows, cols, scale.new_empty(cache_elements))


SPEC = register_primitive(
    Primitive(
        name="similarity_logsumexp",
        equation="lse_i = log sum_{j: key_id_j != query_id_i} exp(scale_i <q_i, k_j> + bias_j)",
        never_builds="N x M",
        serves=("NT-Xent", "InfoNCE with a queue", "MoCo", "CLIP", "SupCon", "DCL"),
        reference=reference,
        function=similarity_logsumexp,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "triton": lazily("sslfast.triton.similarity.logsumexp", FLOATS[:3]),
            "cpu": Implementation(
                native("similarity_logsumexp_cpu", multiplies=True),
                native("similarity_logsumexp_backward_cpu", multiplies=True),
                FLOATS,
            ),
            "reference": Implementation(_reference_forward, reference_backward, FLOATS),
        },
        samples=cases.SAMPLES,
        differentiable=("queries", "keys", "scale", "bias"),
        flops=cost.flops,
        bytes=cost.bytes_moved,
        peak_bytes=cost.peak_bytes,
        properties=cases.PROPERTIES,
        products=True,
        memory=cases.MEMORY,
    )
)
