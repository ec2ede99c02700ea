"""What every rank computes for `test_distributed_redundancy`, and the whole batch beside it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslfast.bench.peers import lightly_loss
from sslfast.distributed import (
    column_moments_of_ranks,
    cross_frobenius_of_ranks,
    frobenius,
    rank,
    sum_over_ranks,
    world_size,
)
from sslfast.functional import barlow_twins_loss, mixed_barlow_twins_loss
from sslfast.losses import BarlowTwinsLoss
from sslfast.ops.correlation.frobenius import reference

NUM_ROWS = 16
WEIGHTS = torch.linspace(0.5, 1.5, 9, dtype=torch.float64)


def own(batch: Tensor) -> Tensor:
    return batch.chunk(world_size())[rank()]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Product:
    """A call of `cross_frobenius_of_ranks`; `width` 0 is the symmetric form."""

    route: str
    dim: int
    width: int
    split_diagonal: bool
    blocks: bool = False
    dtype: torch.dtype = torch.float64

    def matrices(self) -> list[Tensor]:
        a = draw(NUM_ROWS, self.dim, seed=1, dtype=self.dtype)
        return [a, draw(NUM_ROWS, self.width, seed=2, dtype=self.dtype)] if self.width else [a]

    def results(self, function: Any, matrices: list[Tensor], **options: Any) -> list[Tensor]:
        """Outputs, and the gradients of the matrices."""
        leaves = [matrix.clone().requires_grad_() for matrix in matrices]
        found = function(*leaves, split_diagonal=self.split_diagonal, **options)
        outputs = found if self.split_diagonal else (found,)
        value = 0.3 * outputs[0] ** 2
        if self.split_diagonal:
            value = value + (outputs[1] * WEIGHTS.to(value)).sum()
        return [*(each.detach() for each in outputs), *torch.autograd.grad(value, leaves)]

    def whole(self) -> list[Tensor]:
        return self.results(reference, [matrix.double() for matrix in self.matrices()])

    def part(self) -> list[Tensor]:
        matrices = [own(matrix) for matrix in self.matrices()]
        with small_blocks() if self.blocks else mock.patch.dict({}):
            return self.results(cross_frobenius_of_ranks, matrices, route=self.route)


@contextmanager
def small_blocks():
    """Several blocks of C, and several chunks of gathered rows, where one would do."""
    with (
        mock.patch.object(frobenius, "BLOCK_BYTES", 2 * 9 * 8),
        mock.patch.object(frobenius, "GATHERED_ROWS", 1),
    ):
        yield


HALVES = (torch.float16, torch.bfloat16)
ROUTES = ("gram", "direct")
PRODUCTS = (
    *(Product(*form) for form in product((*ROUTES, "auto"), (9,), (0, 9), (False, True))),
    *(Product(route, 9, 5, False) for route in ROUTES),
    *(Product(*form, blocks=True) for form in product(ROUTES, (9,), (0, 9), (False, True))),
    *(Product(route, 9, 9, True, dtype=dtype) for route, dtype in product(ROUTES, HALVES)),
)


@dataclass(frozen=True)
class Twins:
    """Barlow Twins (`mixed`: its mixed form) of linearly encoded rows."""

    statistics: str
    grad_scale: str
    route: str
    mixed: bool = False
    ddof: int = 0

    def loss(self, views: list[Tensor], order: Tensor, lam: Tensor) -> Tensor:
        options: dict[str, Any] = {
            "ddof": self.ddof,
            "eps": 1e-5,
            "statistics": self.statistics,
            "grad_scale": self.grad_scale,
            "route": self.route,
            "gather_distributed": True,
        }
        if self.mixed:
            return mixed_barlow_twins_loss(*views, lam=lam, permutation=order, **options)
        return barlow_twins_loss(*views[:2], **options)

    def part(self) -> dict[str, Tensor]:
        encoder = DistributedDataParallel(make_encoder())
        rows = [own(view).clone().requires_grad_() for view in views()]
        order, lam = mixture(rank(), world_size())
        loss = self.loss(encoder(torch.cat(rows)).chunk(3), order, lam)
        loss.backward()
        (gradient,) = (parameter.grad for parameter in encoder.parameters())
        return {"loss": loss.detach(), "parameters": gradient}

    def whole(self, num_ranks: int) -> dict[str, Tensor]:
        """From the formula, on the whole batch, with D x D matrices."""
        encoder = make_encoder()
        encoded = encoder(torch.cat(views())).chunk(3)
        parts = num_ranks if self.statistics == "local" else 1
        a, b, m = (standardized(view, parts, self.ddof) for view in encoded)
        identity = torch.eye(a.shape[1], dtype=a.dtype)
        weight = identity + 5e-3 * (1 - identity)
        loss = (weight * (a.T @ b / len(a) - identity).square()).sum()
        if self.mixed:
            mixtures = [mixture(index, num_ranks) for index in range(num_ranks)]
            chunks = zip(a.chunk(num_ranks), b.chunk(num_ranks), mixtures, strict=True)
            target = torch.cat([lam * x + (1 - lam) * y[p] for x, y, (p, lam) in chunks])
            for view in (a, b):
                difference = m.T @ view / len(a) - target.T @ view / len(a)
                loss = loss + 5.0 * 5e-3 * difference.square().sum()
        loss.backward()
        scale = 1 / num_ranks if self.grad_scale == "reference" else 1
        return {"loss": loss.detach(), "parameters": scale * encoder.weight.grad}


TWINS = (
    *(Twins(*form) for form in product(("global", "local"), ("exact", "reference"), ROUTES)),
    *(
        Twins(statistics, "exact", route, mixed=True, ddof=1)
        for statistics, route in product(("global", "local"), ROUTES)
    ),
)


def views() -> list[Tensor]:
    images = draw(NUM_ROWS, 6, seed=3)
    return [images + 0.5 * draw(NUM_ROWS, 6, seed=4 + index) + index for index in range(3)]


def make_encoder() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 9, bias=False, dtype=torch.float64)


def mixture(index: int, num_ranks: int) -> tuple[Tensor, Tensor]:
    """A permutation of the rank's own rows and a share of its own."""
    generator = torch.Generator().manual_seed(40 + index)
    order = torch.randperm(NUM_ROWS // num_ranks, generator=generator)
    return order, torch.rand((), generator=generator, dtype=torch.float64)


def standardized(rows: Tensor, parts: int, ddof: int) -> Tensor:
    def one(part: Tensor) -> Tensor:
        variance = part.var(0, correction=ddof)
        return (part - part.mean(0)) / (variance + 1e-5).sqrt()

    return torch.cat([one(part) for part in rows.chunk(parts)])


def moments_rows() -> Tensor:
    """Offsets that squares would not survive, and a constant column."""
    rows = draw(NUM_ROWS, 5, seed=9, dtype=torch.float32) + 1000 * torch.arange(5.0)
    rows[:, 2] = 3.1
    return rows


def moments(ddof: int) -> list[Tensor]:
    """Moments, and the gradient of this rank's rows from a value that each rank adds a part of."""
    rows = own(moments_rows()).clone().requires_grad_()
    mean, variance = column_moments_of_ranks(rows, ddof=ddof)
    part = (1 + rank()) * (mean * torch.arange(1.0, 6) + variance.square()).sum()
    return [mean.detach(), variance.detach(), torch.autograd.grad(part, rows)[0]]


def lightly_case() -> list[Tensor] | None:
    """lightly's loss and sslfast's with its conventions."""
    try:
        theirs = lightly_loss("barlow_twins_loss", "BarlowTwinsLoss")
    except ImportError:
        return None
    results = []
    ours = BarlowTwinsLoss(gather_distributed=True, statistics="local")
    for loss_function in (theirs(gather_distributed=True), ours):
        rows = [own(view).clone().requires_grad_() for view in views()[:2]]
        loss = loss_function(*rows)
        results += [loss.detach(), *torch.autograd.grad(loss, rows)]
    return results


def raw_case() -> list[Tensor]:
    """A correlation that the ranks add up behind autograd's back, and sslfast's ``reference``."""

    def raw(first: Tensor, second: Tensor) -> Tensor:
        a, b = (standardized(rows, 1, 0) for rows in (first, second))
        correlation = a.T @ b / (len(a) * world_size())
        with torch.no_grad():
            dist.all_reduce(correlation)
        identity = torch.eye(a.shape[1], dtype=a.dtype)
        weight = identity + 5e-3 * (1 - identity)
        return 0.025 * (weight * (correlation - identity).square()).sum()

    options = {"scale_loss": 0.025, "statistics": "local", "grad_scale": "reference"}
    ours = BarlowTwinsLoss(gather_distributed=True, **options)
    results = []
    for loss_function in (raw, ours):
        rows = [own(view).clone().requires_grad_() for view in views()[:2]]
        loss = loss_function(*rows)
        results += [loss.detach(), *torch.autograd.grad(loss, rows)]
    return results


def lonely_backward() -> Tensor | None:
    """Only rank 0 goes back through the product: nobody else would answer a collective."""
    gradients = []
    for route in ROUTES:
        a, b = (own(draw(NUM_ROWS, 9, seed=seed)).requires_grad_() for seed in (1, 2))
        total, _ = cross_frobenius_of_ranks(a, b, split_diagonal=True, route=route)
        if rank() == 0:
            gradients.append(torch.autograd.grad(total, a)[0])
    return torch.stack(gradients) if gradients else None


def traffic() -> dict[str, list[int]]:
    """Elements of each tensor that is reduced, by route, with small blocks."""
    found: dict[str, list[int]] = {}
    for route, symmetric in product(ROUTES, (False, True)):
        sizes: list[int] = []
        reduce = dist.all_reduce

        def counted(tensor: Tensor, group: Any, sizes=sizes, reduce=reduce) -> None:
            sizes.append(tensor.numel())
            reduce(tensor, group=group)

        a, b = (own(draw(NUM_ROWS, 9, seed=seed)) for seed in (1, 2))
        with small_blocks(), mock.patch.object(dist, "all_reduce", counted):
            cross_frobenius_of_ranks(a, None if symmetric else b, route=route)
        found[f"{route} {symmetric}"] = sizes
    return found


def subgroup_case() -> list[Tensor]:
    last_two = dist.new_group([world_size() - 2, world_size() - 1])
    if rank() < world_size() - 2:
        return []
    rows = torch.full((2, 3), float(rank()))
    values = [
        cross_frobenius_of_ranks(rows, route=route, group=last_two, split_diagonal=False)
        for route in ROUTES
    ]
    mean, variance = column_moments_of_ranks(rows, group=last_two)
    return [*values, mean, variance, sum_over_ranks(rows.sum(), last_two)]


def compiled_case(route: str) -> list[Tensor]:
    """A loss and its gradient, as it is and from one graph."""

    def loss_function(first: Tensor, second: Tensor) -> Tensor:
        return barlow_twins_loss(first, second, gather_distributed=True, route=route)

    results = []
    compiled = torch.compile(loss_function, fullgraph=True, backend="aot_eager")
    for function in (loss_function, compiled):
        rows = [own(view).clone().requires_grad_() for view in views()[:2]]
        loss = function(*rows)
        results += [loss.detach(), *torch.autograd.grad(loss, rows)]
    return results


def one_row_each() -> list[Any]:
    """Global statistics of one row on each rank, and the message of local ones."""
    rows = [view[rank() : rank() + 1] for view in views()[:2]]
    value = barlow_twins_loss(*rows, gather_distributed=True)
    return [value, message(barlow_twins_loss, *rows, gather_distributed=True, statistics="local")]


def message(function: Any, *arguments: Any, **options: Any) -> str:
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)
    return "no error"


def no_rows() -> list[Tensor]:
    return [cross_frobenius_of_ranks(torch.zeros(0, 3), route=route) for route in ROUTES]


def unequal() -> list[str]:
    rows = torch.zeros(2 + rank(), 4)
    return [
        message(column_moments_of_ranks, rows),
        *(message(cross_frobenius_of_ranks, rows, route=route) for route in ROUTES),
    ]


def run() -> dict[str, Any]:
    return {
        "products": {case: case.part() for case in PRODUCTS},
        "twins": {case: case.part() for case in TWINS},
        "moments": [moments(ddof) for ddof in (0, 1)],
        "lightly": lightly_case(),
        "raw": raw_case(),
        "lonely": lonely_backward(),
        "traffic": traffic(),
        "subgroup": subgroup_case(),
        "compiled": [compiled_case(route) for route in ROUTES],
        "one row": one_row_each(),
        "no rows": no_rows(),
        "unequal": unequal(),
    }
