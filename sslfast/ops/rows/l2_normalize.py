r"""Row normalisation: y_i = x_i / max(||x_i||, eps).

Source: `torch.nn.functional.normalize`, the first step of every contrastive objective (Chen et
al. 2020, section 2.1). Gradient, with g = dL/dy:

    dL/dx_i = (g_i - y_i <y_i, g_i>) / ||x_i||      where ||x_i|| >= eps
    dL/dx_i = g_i / eps                             elsewhere

Never materialised: the squares, the expanded norm, the products of the gradient. N rows of D
features cost 3 N D operations forward and 7 N D backward; the rows are read once and written once
in each direction. On the CPU half-precision rows are widened to a float32 copy first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import native
from sslfast._core.checks import check_floating, check_number
from sslfast._core.numerics import FLOATS, accumulator
from sslfast._registry import (
    Implementation,
    Primitive,
    Property,
    Sample,
    Size,
    lazily,
    register_primitive,
)
from sslfast.cuda.rows.blocks import too_long
from sslfast.ops.measured_rows import measured_rows


def reference(embeddings: Tensor, *, eps: float = 1e-12) -> Tensor:
    """The formula in plain torch; half-precision rows are widened to float32 first."""
    wide = embeddings.to(accumulator(embeddings.dtype))  # (..., D)
    norm: Tensor = wide.norm(dim=-1, keepdim=True)  # (..., 1)
    normalized: Tensor = wide / norm.clamp_min(eps)  # (..., D)
    return normalized.to(embeddings.dtype)  # (..., D)


def l2_normalize(embeddings: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Divide every row by its Euclidean norm.

    Args:
        embeddings: (..., D) rows; float16, bfloat16, float32 or float64.
        eps: least divisor, so that zero rows stay zero; finite and above 0.

    Returns:
        (..., D) rows of norm 1 in the dtype of `embeddings`; norms are float32 or wider.

    Raises:
        TypeError: `embeddings` is not a floating tensor, or `eps` not a number.
        ValueError: `embeddings` has no features, or `eps` is not finite and positive.

    Differs from `torch.nn.functional.normalize`: half-precision rows keep a float32 norm (eps =
    1e-12 is 0 in float16, so a zero row gives NaN there), and the float16 gradient of a row
    below `eps` saturates instead of overflowing. A second derivative raises.
    """
    check_floating("embeddings", embeddings)
    if embeddings.ndim == 0 or embeddings.shape[-1] == 0:
        raise ValueError(
            "embeddings must have shape (..., D) with at least one feature, "
            f"got shape {tuple(embeddings.shape)}"
        )
    check_number("eps", eps, above=0)
    normalized: Tensor
    normalized, _ = _forward(embeddings, float(eps), _backends.forced())
    return normalized


@torch.library.custom_op(
    "sslfast::l2_normalize",
    mutates_args=(),
    schema="(Tensor embeddings, float eps, str backend) -> (Tensor normalized, Tensor norm)",
)
def _forward(embeddings: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    choice = _backends.choose(SPEC, backend, embeddings)
    normalized, norm = choice.forward(_matrix(embeddings), eps)  # (N, D), (N,)
    shape = embeddings.shape
    return normalized.to(embeddings.dtype).view(shape), norm.view(shape[:-1])


def _matrix(rows: Tensor) -> Tensor:
    """(..., D) -> (N, D)."""
    return rows.reshape(-1, rows.shape[-1])


@_forward.register_fake
def _(embeddings: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    dtype = accumulator(embeddings.dtype)
    return embeddings.new_empty(embeddings.shape), embeddings.new_empty(
        embeddings.shape[:-1], dtype=dtype
    )


@torch.library.custom_op(
    "sslfast::l2_normalize_backward",
    mutates_args=(),
    schema="(Tensor dnormalized, Tensor embeddings, Tensor norm, float eps, str backend) -> Tensor",
)
def _backward(
    dnormalized: Tensor, embeddings: Tensor, norm: Tensor, eps: float, backend: str
) -> Tensor:
    choice = _backends.choose(SPEC, backend, embeddings)
    norm = norm.reshape(-1)  # (N,)
    dembeddings: Tensor  # (N, D)
    dembeddings = choice.backward(_matrix(dnormalized), _matrix(embeddings), norm, eps)
    if embeddings.dtype == torch.float16 != dembeddings.dtype:  # else the kernel has saturated
        limit = torch.finfo(torch.float16).max
        below = (norm < eps).unsqueeze(-1)  # (N, 1)
        dembeddings = torch.where(below, dembeddings.clamp(-limit, limit), dembeddings)
    return dembeddings.to(embeddings.dtype).view(embeddings.shape)


@_backward.register_fake
def _(dnormalized: Tensor, embeddings: Tensor, norm: Tensor, eps: float, backend: str) -> Tensor:
    return embeddings.new_empty(embeddings.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    embeddings, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(embeddings, output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dnormalized: Tensor | None, dnorm: None) -> tuple[Tensor | None, ...]:
    if dnormalized is None:
        return None, None, None
    embeddings, norm = ctx.saved_tensors
    return _backward(dnormalized, embeddings, norm, ctx.eps, ctx.backend), None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _reference_forward(embeddings: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    norm = embeddings.to(accumulator(embeddings.dtype)).norm(dim=-1)  # (...)
    return reference(embeddings, eps=eps), norm


def _reference_backward(
    dnormalized: Tensor, embeddings: Tensor, norm: Tensor, eps: float
) -> Tensor:
    dtype = accumulator(embeddings.dtype)
    divisor = norm.clamp_min(eps).unsqueeze(-1)  # (..., 1)
    y, dy = embeddings.to(dtype) / divisor, dnormalized.to(dtype)  # (..., D)
    radial = (y * dy).sum(-1, keepdim=True)  # (..., 1)
    return (dy - y * radial.where((norm >= eps).unsqueeze(-1), 0)) / divisor  # (..., D)


def _flops(embeddings: Tensor, *, eps: float = 1e-12, backward: bool = True) -> int:
    return embeddings.numel() * (10 if backward else 3)


def _bytes(embeddings: Tensor, *, eps: float = 1e-12, backward: bool = True) -> int:
    return embeddings.numel() * embeddings.element_size() * (5 if backward else 2)


def _peak_bytes(embeddings: Tensor, *, eps: float = 1e-12, backward: bool = True) -> int:
    """Result and gradient in the input's dtype, and three widened copies where it is half."""
    width = accumulator(embeddings.dtype).itemsize
    copies = 3 if width > embeddings.element_size() else 0
    matrices = embeddings.element_size() * (2 if backward else 1) + width * copies
    return embeddings.numel() * matrices + width * embeddings[..., 0].numel()


def _sample(
    name: str, size: Size, *shape: int, magnitude: float = 1.0, zero: bool = False
) -> Sample:
    def make(generator: torch.Generator) -> dict[str, Any]:
        rows = magnitude * torch.randn(shape, generator=generator, dtype=torch.float64)
        if zero:
            rows[0] = 0
        return {"embeddings": rows}

    return Sample(name, size, make, smooth=not zero)


def _any_rows(generator: torch.Generator) -> Tensor:
    return torch.randn(23, 19, generator=generator, dtype=torch.float64)


def _scale_free(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = _any_rows(generator)
    return function(1000 * rows), function(rows)


def _unit_rows(function: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    norms = function(_any_rows(generator)).norm(dim=-1)
    return norms, torch.ones_like(norms)


def _rows(num_rows: int, dim: int) -> dict[str, Any]:
    return {"embeddings": measured_rows(num_rows, dim)}


SPEC = register_primitive(
    Primitive(
        name="l2_normalize",
        equation="y_i = x_i / max(||x_i||, eps)",
        never_builds="squares, products",
        serves=("every objective on the unit sphere",),
        reference=reference,
        function=l2_normalize,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "cuda": lazily("sslfast.cuda.rows.l2_normalize", FLOATS, too_long),
            "triton": lazily("sslfast.triton.rows.l2_normalize", FLOATS),
            "cpu": Implementation(
                native("l2_normalize_cpu"), native("l2_normalize_backward_cpu"), FLOATS
            ),
            "reference": Implementation(_reference_forward, _reference_backward, FLOATS),
        },
        samples=(
            _sample("one_number", "tiny", 1, 1),
            _sample("one_row", "tiny", 17),
            _sample("no_rows", "tiny", 0, 5),
            _sample("ragged", "ragged", 67, 33),
            _sample("odd_features", "ragged", 5, 1000),
            _sample("tokens", "ragged", 3, 7, 21),
            _sample("batch", "typical", 512, 128),
            _sample("large", "extreme", 13, 40, magnitude=1e4),
            _sample("small", "extreme", 13, 40, magnitude=1e-3),
            _sample("zero_row", "extreme", 4, 9, zero=True),
        ),
        differentiable=("embeddings",),
        flops=_flops,
        bytes=_bytes,
        peak_bytes=_peak_bytes,
        properties=(
            Property("unit_rows", "every non-zero row has norm 1", _unit_rows),
            Property("scale_free", "f(1000 x) = f(x)", _scale_free),
        ),
        memory={"rows": _rows},
    )
)
