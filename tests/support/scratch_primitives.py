"""Throw-away primitives of every kind that the registry holds beside rows with a gradient.

Their ops are torch's for good, once this module is imported; the registry holds them only inside
`registered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sslfast import _backends
from sslfast._core.numerics import FLOATS
from sslfast._core.tree import tensors
from sslfast._registry import (
    PRIMITIVES,
    Implementation,
    Primitive,
    Sample,
    register_primitive,
)
from sslfast.testing import cast

SHAPES = {"tiny": (1, 2), "ragged": (7, 5), "typical": (64, 32), "extreme": (3, 200)}
Make = Callable[[torch.Generator, int, int], dict[str, Any]]


@contextmanager
def registered(spec: Primitive) -> Iterator[Primitive]:
    """The spec in the registry inside the ``with`` block."""
    register_primitive(spec)
    try:
        yield spec
    finally:
        del PRIMITIVES[spec.name]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _spec(
    name: str,
    function: Any,
    reference: Any,
    make: Make,
    *,
    forward: Any,
    other: Any,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    backward: Any = None,
    **more: Any,
) -> Primitive:
    def samples() -> Iterator[Sample]:
        for size, (num_rows, dim) in SHAPES.items():
            # Bound now: the loop's variables are those of the last round by the time of a call.
            def drawn(generator: torch.Generator, n: int = num_rows, d: int = dim) -> Any:
                return make(generator, n, d)

            yield Sample(size, size, drawn)  # type: ignore[arg-type]

    def cost(*, backward: bool = True, **arguments: Any) -> int:
        moved = sum(each.numel() * each.element_size() for _, each in tensors(arguments))
        return moved * (2 if backward and more.get("backward_op") else 1)

    def measured(num_rows: int, dim: int) -> dict[str, Any]:
        return cast(make(torch.Generator().manual_seed(0), num_rows, dim), torch.float32)

    def any_variant(body: Any) -> Any:
        return None if body is None else lambda *arguments, **options: body(*arguments)

    return Primitive(
        name=name,
        equation=name,
        never_builds="nothing",
        serves=("tests",),
        reference=reference,
        function=function,
        implementations={
            "reference": Implementation(forward, backward, dtypes),
            "cpu": Implementation(any_variant(other), any_variant(backward), dtypes),
        },
        samples=tuple(samples()),
        flops=cost,
        bytes=cost,
        peak_bytes=cost,
        memory={"rows": measured},
        **more,
    )


# Without a gradient: the log-sum-exp of every column, as the potentials of Sinkhorn have it.


def _potentials_reference(logits: Tensor) -> Tensor:
    return logits.logsumexp(0)


def potentials(logits: Tensor) -> Tensor:
    value: Tensor = _potentials(logits, _backends.forced())
    return value


@torch.library.custom_op("sslfast::scratch_potentials", mutates_args=())
def _potentials(logits: Tensor, backend: str) -> Tensor:
    value: Tensor = _backends.choose(POTENTIALS, backend, logits).forward(logits)
    return value


@_potentials.register_fake
def _(logits: Tensor, backend: str) -> Tensor:
    return logits.new_empty(logits.shape[1])


def _shifted(logits: Tensor) -> Tensor:
    largest = logits.amax(0)
    return (logits - largest).exp().sum(0).log() + largest


POTENTIALS = _spec(
    "scratch_potentials",
    potentials,
    _potentials_reference,
    lambda generator, n, d: {"logits": normal(generator, n, d)},
    forward=_potentials_reference,
    other=_shifted,
    forward_op=_potentials,
)

# In place, over lists of tensors: the moving average of a teacher's parameters.


def _average_reference(targets: list[Tensor], sources: list[Tensor], *, share: float = 0.1) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, share)


def average(targets: list[Tensor], sources: list[Tensor], *, share: float = 0.1) -> None:
    _average(targets, sources, share, _backends.forced())


@torch.library.custom_op(
    "sslfast::scratch_average",
    mutates_args=("targets",),
    schema="(Tensor(a!)[] targets, Tensor[] sources, float share, str backend) -> ()",
)
def _average(targets: list[Tensor], sources: list[Tensor], share: float, backend: str) -> None:
    _backends.choose(AVERAGE, backend, *targets, *sources).forward(targets, sources, share)


@_average.register_fake
def _(targets: list[Tensor], sources: list[Tensor], share: float, backend: str) -> None:
    return None


def _each_average(targets: list[Tensor], sources: list[Tensor], share: float) -> None:
    _average_reference(targets, sources, share=share)


def _all_averages(targets: list[Tensor], sources: list[Tensor], share: float) -> None:
    torch._foreach_lerp_(targets, sources, share)


def _parameters(generator: torch.Generator, n: int, d: int) -> dict[str, Any]:
    shapes = ((n, d), (d,), (1,))
    held = {
        name: [normal(generator, *shape) for shape in shapes] for name in ("targets", "sources")
    }
    return {**held, "share": 0.25}


AVERAGE = _spec(
    "scratch_average",
    average,
    _average_reference,
    _parameters,
    forward=_each_average,
    other=_all_averages,
    forward_op=_average,
    mutates=("targets",),
)

# With a gradient, over a list of tensors: the mean square of all views.


def _square_reference(views: list[Tensor]) -> Tensor:
    return torch.stack([view.square().mean() for view in views]).mean()


def square(views: list[Tensor]) -> Tensor:
    value: Tensor = _square(views, _backends.forced())
    return value


@torch.library.custom_op("sslfast::scratch_square", mutates_args=())
def _square(views: list[Tensor], backend: str) -> Tensor:
    value: Tensor = _backends.choose(SQUARE, backend, *views).forward(views)
    return value


@_square.register_fake
def _(views: list[Tensor], backend: str) -> Tensor:
    return views[0].new_empty(())


@torch.library.custom_op("sslfast::scratch_square_backward", mutates_args=())
def _square_backward(dsquare: Tensor, views: list[Tensor], backend: str) -> list[Tensor]:
    found: list[Tensor] = _backends.choose(SQUARE, backend, *views).backward(dsquare, views)
    return found


@_square_backward.register_fake
def _(dsquare: Tensor, views: list[Tensor], backend: str) -> list[Tensor]:
    return [torch.empty_like(view) for view in views]


def _square_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    views, ctx.backend = inputs
    ctx.save_for_backward(*views)


def _square_autograd(ctx: Any, dsquare: Tensor) -> tuple[Any, None]:
    return _square_backward(dsquare, list(ctx.saved_tensors), ctx.backend), None


_square.register_autograd(_square_autograd, setup_context=_square_context)


def _square_gradients(dsquare: Tensor, views: list[Tensor]) -> list[Tensor]:
    return [dsquare * 2 * view / (view.numel() * len(views)) for view in views]


def _square_by_norm(views: list[Tensor]) -> Tensor:
    means = [view.pow(2).sum() / view.numel() for view in views]
    return torch.stack(means).sum() / len(views)


SQUARE = _spec(
    "scratch_square",
    square,
    _square_reference,
    lambda generator, n, d: {"views": [normal(generator, n, d) for _ in range(3)]},
    forward=_square_reference,
    other=_square_by_norm,
    backward=_square_gradients,
    forward_op=_square,
    backward_op=_square_backward,
    differentiable=("views",),
)

# On uint8 images: the contrast of each, one factor an image.


def _contrast_reference(images: Tensor, factors: Tensor) -> Tensor:
    wide = images.to(factors.dtype) / 255
    mean = wide.mean((1, 2), keepdim=True)
    return mean + (wide - mean) * factors[:, None, None]


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    value: Tensor = _contrast(images, factors, _backends.forced())
    return value


@torch.library.custom_op("sslfast::scratch_contrast", mutates_args=())
def _contrast(images: Tensor, factors: Tensor, backend: str) -> Tensor:
    value: Tensor = _backends.choose(CONTRAST, backend, images, factors).forward(images, factors)
    return value


@_contrast.register_fake
def _(images: Tensor, factors: Tensor, backend: str) -> Tensor:
    return factors.new_empty(images.shape)


def _contrast_by_lerp(images: Tensor, factors: Tensor) -> Tensor:
    wide = images.to(factors.dtype).div_(255)
    return torch.lerp(wide.mean((1, 2), keepdim=True), wide, factors[:, None, None])


def _images(generator: torch.Generator, n: int, d: int) -> dict[str, Any]:
    images = torch.randint(256, (n, d, d), generator=generator, dtype=torch.uint8)
    return {"images": images, "factors": normal(generator, n).sigmoid()}


CONTRAST = _spec(
    "scratch_contrast",
    contrast,
    _contrast_reference,
    _images,
    forward=_contrast_reference,
    other=_contrast_by_lerp,
    dtypes=(torch.uint8,),
    forward_op=_contrast,
)

# With integer outputs alone: which prototype is nearest.


def _nearest_reference(rows: Tensor, prototypes: Tensor) -> Tensor:
    return (rows[:, None] - prototypes[None]).double().square().sum(2).argmin(1)


def nearest(rows: Tensor, prototypes: Tensor) -> Tensor:
    value: Tensor = _nearest(rows, prototypes, _backends.forced())
    return value


@torch.library.custom_op("sslfast::scratch_nearest", mutates_args=())
def _nearest(rows: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    value: Tensor = _backends.choose(NEAREST, backend, rows, prototypes).forward(rows, prototypes)
    return value


@_nearest.register_fake
def _(rows: Tensor, prototypes: Tensor, backend: str) -> Tensor:
    return rows.new_empty(len(rows), dtype=torch.int64)


def _nearest_by_product(rows: Tensor, prototypes: Tensor) -> Tensor:
    rows, prototypes = rows.double(), prototypes.double()
    return (2 * rows @ prototypes.T - prototypes.square().sum(1)).argmax(1)


def _clusters(generator: torch.Generator, n: int, d: int) -> dict[str, Any]:
    prototypes = 8 * normal(generator, 4, d)  # so far apart that half precision finds the same
    chosen = torch.randint(4, (n,), generator=generator)
    return {"rows": prototypes[chosen] + normal(generator, n, d) / 8, "prototypes": prototypes}


NEAREST = _spec(
    "scratch_nearest",
    nearest,
    _nearest_reference,
    _clusters,
    forward=_nearest_reference,
    other=_nearest_by_product,
    forward_op=_nearest,
)

KINDS = {
    "without a gradient": POTENTIALS,
    "in place over lists": AVERAGE,
    "gradient over lists": SQUARE,
    "uint8 images": CONTRAST,
    "integer outputs": NEAREST,
}
