r"""Columns with mean 0 and variance 1: y = (x - mean) r, r = 1 / sqrt(variance + eps).

Sources: batch normalisation (Ioffe and Szegedy 2015, algorithm 1) without its affine part, as
Barlow Twins (Zbontar et al. 2021, equation 2) applies it to projections, and the centring and
variance of VICReg (Bardes et al. 2022, equations 1 and 3). With g = dL/dy, own statistics,
n = N - ddof and sums over the rows:

    dL/dx = r (g - sum g / N - y sum(y g) / n) + 2 dvariance (x - mean) / n + dmean / N

where dmean and dvariance are the gradients of the statistics that are handed out. Given
statistics are arguments like any other: dL/dx = r g, dL/dmean = -r sum g,
dL/dvariance = -r^2 sum(y g) / 2.

Never materialised: x - mean, its squares, the products of the gradient. N rows of D features cost
6 N D operations forward and 12 N D backward; x is read twice and y written once, backward x and g
are read twice and dx written once. y is not saved: the gradient starts from x. On the CPU half
precision is widened to a float32 copy first.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.calls import wanted
from sslfast._core.numerics import FLOATS, accumulator
from sslfast._core.rows.standardize import Columns, Gradients, Scaling
from sslfast._registry import Implementation, Primitive, lazily, register_primitive
from sslfast.cpu.rows import standardize as cpu
from sslfast.ops.rows import standardize_cases as cases
from sslfast.ops.rows import standardize_cost as cost
from sslfast.ops.rows.checks import check_standardize, check_variance
from sslfast.ops.rows.standardize_gradient import near_mean, reference_backward, scale


def reference(
    embeddings: Tensor,
    *,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    ddof: int = 0,
    eps: float = 1e-5,
    eps_on: str = "variance",
    unit_variance: bool = True,
    statistics: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The formula in plain torch; half precision is widened to float32 first."""
    wide = embeddings.to(accumulator(embeddings.dtype))  # (N, D)
    rule = Scaling(ddof, eps, eps_on, unit_variance)
    if mean is None or variance is None:
        near = near_mean(wide.detach())  # (D,)
        offset = wide - near  # (N, D)
        rest = offset.mean(0)  # (D,) of the exact mean, what `near` leaves
        centred = offset - rest  # (N, D)
        mean = near + rest  # (D,)
        variance = centred.square().sum(0) / (len(wide) - ddof)  # (D,)
    else:
        mean, variance = mean.to(wide.dtype), variance.to(wide.dtype)  # (D,)
        centred = wide - mean  # (N, D)
    y = (centred * scale(variance, rule)).to(embeddings.dtype)  # (N, D)
    return (y, mean, variance) if statistics else y  # (N, D), (D,), (D,)


@overload
def standardize(
    embeddings: Tensor,
    *,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    ddof: int = 0,
    eps: float = 1e-5,
    eps_on: str = "variance",
    unit_variance: bool = True,
    statistics: Literal[False] = False,
) -> Tensor: ...
@overload
def standardize(
    embeddings: Tensor,
    *,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    ddof: int = 0,
    eps: float = 1e-5,
    eps_on: str = "variance",
    unit_variance: bool = True,
    statistics: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...


def standardize(
    embeddings: Tensor,
    *,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    ddof: int = 0,
    eps: float = 1e-5,
    eps_on: str = "variance",
    unit_variance: bool = True,
    statistics: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Subtract from every column its mean and divide it by its standard deviation.

    Args:
        embeddings: (N, D) rows; float16, bfloat16, float32 or float64.
        mean: (D,) of another set, e.g. of the batch of all ranks, in the dtype of the sums or
            rounded to it; together with `variance`. ``None``: the columns' own, and the gradient
            goes through them.
        variance: (D,), not negative; together with `mean`.
        ddof: own variances divide by N - ddof.
        eps: added to the variance or to the deviation; finite and at least 0.
        eps_on: ``"variance"``: divide by sqrt(variance + eps); ``"deviation"``: by
            sqrt(variance) + eps.
        unit_variance: ``False`` subtracts the mean and divides by nothing.
        statistics: also return mean and variance, to which gradients flow as well.

    Returns:
        (N, D) in the dtype of `embeddings`; with `statistics` also (D,) mean and (D,) variance in
        float32 (float64 for float64 embeddings). A column whose divisor is 0 (constant, with
        eps = 0) is 0 with gradient 0; a variance of 0 has gradient 0 through its square root.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: `embeddings` is no matrix or has no more than `ddof` rows, one of `mean` and
            `variance` is missing, a shape, device or value does not fit (on CUDA values are read
            under ``SSLFAST_CHECK=1`` only).

    Differs from others: `torch.nn.BatchNorm1d` without its affine part, which lightly and the
    official Barlow Twins use, is the default here, less its running statistics. Mixed Barlow
    Twins and stable-pretraining divide by the unbiased deviation: ``ddof=1`` with ``eps=0``
    (where a constant column of theirs is NaN) and with ``eps_on="deviation"``. Statistics are
    float32 where theirs have the dtype of the rows. A second derivative raises.
    """
    check_standardize(embeddings, mean, variance, ddof, eps, eps_on)
    wide = accumulator(embeddings.dtype)
    rule = Scaling(ddof, float(eps), eps_on, bool(unit_variance))
    if mean is None or variance is None:
        y, mean, variance, _ = _forward(embeddings, None, None, *rule, _backends.forced())
    else:
        mean, variance = mean.to(wide), variance.to(wide)
        y, *_ = _forward(embeddings, mean, variance, *rule, _backends.forced())
    return (y, mean, variance) if statistics else y


_RULE = "int ddof, float eps, str eps_on, bool unit_variance, str backend"


@torch.library.custom_op(
    "sslfast::standardize",
    mutates_args=(),
    schema=f"(Tensor embeddings, Tensor? given_mean, Tensor? given_variance, {_RULE})"
    " -> (Tensor standardized, Tensor mean, Tensor variance, Tensor rest)",
)
def _forward(*given: Any) -> tuple[Tensor, ...]:
    embeddings, mean, variance, *rule, backend = given
    if variance is not None:
        check_variance(variance)
    choice = _backends.choose(SPEC, backend, embeddings)
    standardized, columns = choice.forward(embeddings, mean, variance, Scaling(*rule))
    return (standardized.to(embeddings.dtype), *columns)


@_forward.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    embeddings, mean, *_ = given
    dim = embeddings.shape[1] if mean is None else 0
    dtype = accumulator(embeddings.dtype)
    vectors = (embeddings.new_empty(dim, dtype=dtype) for _ in range(3))
    return (embeddings.new_empty(embeddings.shape), *vectors)


@torch.library.custom_op(
    "sslfast::standardize_backward",
    mutates_args=(),
    schema="(Tensor dstandardized, Tensor dmean, Tensor dvariance, Tensor embeddings, Tensor mean,"
    f" Tensor variance, Tensor rest, bool need_statistics, {_RULE})"
    " -> (Tensor dembeddings, Tensor dgiven_mean, Tensor dgiven_variance)",
)
def _backward(*given: Any) -> Gradients:
    dy, dmean, dvariance, embeddings, mean, variance, rest, need, *rule, backend = given
    choice = _backends.choose(SPEC, backend, embeddings)
    gradients: Gradients = choice.backward(
        dy, dmean, dvariance, embeddings, Columns(mean, variance, rest), Scaling(*rule), need
    )
    return gradients._replace(dembeddings=gradients.dembeddings.to(embeddings.dtype))


@_backward.register_fake
def _(*given: Any) -> Gradients:
    embeddings, mean, need = given[3], given[4], given[7]
    vectors = (mean.new_empty(mean.shape if need else 0) for _ in range(2))
    return Gradients(embeddings.new_empty(embeddings.shape), *vectors)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    embeddings, mean, variance, *ctx.options = inputs
    given = (mean, variance) if mean is not None else output[1:3]
    ctx.save_for_backward(embeddings, *given, output[3])
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, dy: Tensor | None, dmean: Tensor | None, dvariance: Tensor | None, drest: None
) -> tuple[Tensor | None, ...]:
    embeddings, mean, variance, rest = ctx.saved_tensors
    need = any(ctx.needs_input_grad[1:3])
    dy = torch.zeros_like(embeddings) if dy is None else dy
    dmean, dvariance = (torch.zeros_like(rest) if d is None else d for d in (dmean, dvariance))
    gradients = _backward(
        dy, dmean, dvariance, embeddings, mean, variance, rest, need, *ctx.options
    )
    return wanted(gradients, ctx.needs_input_grad)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _reference_forward(
    embeddings: Tensor, mean: Tensor | None, variance: Tensor | None, rule: Scaling
) -> tuple[Tensor, Columns]:
    y, own_mean, own_variance = reference(
        embeddings, mean=mean, variance=variance, **rule._asdict(), statistics=True
    )
    if mean is not None:
        return y, Columns(*(mean.new_empty(0) for _ in range(3)))
    rest = (embeddings.to(own_mean.dtype) - own_mean).mean(0)  # (D,)
    return y, Columns(own_mean, own_variance, rest)


SPEC = register_primitive(
    Primitive(
        name="standardize",
        equation="y_i = (x_i - mean) / sqrt(variance + eps)",
        never_builds="centred, squares, products",
        serves=("Barlow Twins", "Mixed Barlow Twins", "VICReg(L)", "VIbCReg", "SIE"),
        reference=reference,
        function=standardize,
        forward_op=_forward,
        backward_op=_backward,
        implementations={
            "triton": lazily("sslfast.triton.rows.standardize", FLOATS),
            "cpu": Implementation(cpu.forward, cpu.backward, cpu.DTYPES),
            "reference": Implementation(_reference_forward, reference_backward, FLOATS),
        },
        samples=cases.SAMPLES,
        differentiable=("embeddings", "mean", "variance"),
        flops=cost.flops,
        bytes=cost.bytes_moved,
        peak_bytes=cost.peak_bytes,
        properties=cases.PROPERTIES,
        memory=cases.MEMORY,
    )
)
