"""The gradient of `similarity_logsumexp` in plain torch: the formula of its module docstring."""

from __future__ import annotations

import torch
from torch import Tensor

from sslfast._core.similarity.logsumexp import Arguments, Gradients, Needs, Sums
from sslfast._core.similarity.logsumexp_keep import Keep


def reference_backward(
    drows: Tensor, dcols: Tensor, arguments: Arguments, sums: Sums, keep: Keep, needs: Needs
) -> Gradients:
    """G and its four sums; empty where not needed. Nothing kept is used but the sums."""
    queries, keys, scale, bias, query_ids, _, columns = arguments
    rows, cols, _ = sums
    symmetric = keys is None
    q = queries.to(scale.dtype)  # (N, D)
    k = q if keys is None else keys.to(scale.dtype)  # (M, D)
    similarity = q @ k.T  # (N, M)
    factor = scale.reshape(-1, 1)  # (1, 1) or (N, 1)
    logits = factor * similarity if bias is None else factor * similarity + bias  # (N, M)
    gradient = _softmax_gradient(logits, rows[:, None], drows[:, None])  # (N, M)
    if columns:
        gradient = gradient + _softmax_gradient(logits, cols, dcols)  # (N, M)
    if query_ids is not None and arguments.other_ids is not None:
        excluded = query_ids[:, None] == arguments.other_ids[None, :]  # (N, M)
        gradient = gradient.masked_fill(excluded, 0)  # (N, M)
    empty = scale.new_empty
    both = gradient + gradient.T if symmetric else gradient  # (N, M)
    products = (gradient * similarity).sum(1)  # (N,)
    dscale = products if scale.numel() > 1 else products.sum().reshape(1)  # (N,) or (1,)
    return Gradients(
        factor * (both @ k) if needs.queries else empty(0),  # (N, D)
        gradient.T @ (factor * q) if needs.keys and not symmetric else empty(0),  # (M, D)
        dscale if needs.scale else empty(0),
        gradient.sum(0) if needs.bias else empty(0),  # (M,)
    )


def _softmax_gradient(logits: Tensor, lse: Tensor, dlse: Tensor) -> Tensor:
    """dlse exp(logits - lse), 0 where the sum was empty."""
    none = lse == -torch.inf
    return (logits - lse.masked_fill(none, torch.inf)).exp() * dlse.masked_fill(none, 0)
