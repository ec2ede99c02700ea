"""Forward-mode derivatives: the right tangent, or an error. Never a tangent that is dropped.

Every primitive and loss, by `torch.func.jvp` and by dual tensors; an argument alone or all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import sslfast
from sslfast._core.tree import map_tensors
from sslfast._registry import LOSSES, PRIMITIVES, Loss, Primitive, Sample
from sslfast.testing import continuous, gradients, learnable

Subject = Loss | Primitive
SUBJECTS: dict[str, Subject] = {
    **{name: each for name, each in PRIMITIVES.items() if each.backward_op is not None},
    **LOSSES,
}
every_subject = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


def small(subject: Subject) -> Sample:
    """The first ragged sample of few numbers; a loss over matrices of images has none below."""
    return min((s for s in subject.samples if s.size == "ragged"), key=_size)


def _size(sample: Sample) -> int:
    _, leaves = learnable(sample.make(torch.Generator().manual_seed(0)))
    return sum(leaf.numel() for leaf in leaves.values())


class Directional:
    """A call, its leaves, a direction for them, and by reverse mode what is right."""

    def __init__(self, subject: Subject) -> None:
        generator = torch.Generator().manual_seed(2026)
        self.arguments = small(subject).make(generator)
        self.names = subject.learning(self.arguments)
        self.function: Callable[..., Any] = (
            subject.functional if isinstance(subject, Loss) else (subject.function)
        )
        given, self.leaves = learnable(self.arguments, self.names)
        self.directions = {
            name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            for name, leaf in self.leaves.items()
        }
        outputs = continuous(self.function(**given))
        ones = [torch.ones_like(output) for output in outputs]
        found = gradients(outputs, self.leaves, ones)
        self.slopes = {name: (found[name] * self.directions[name]).sum() for name in found}

    def total(self, moved: dict[str, Tensor]) -> Tensor:
        """The sum of all outputs, with these tensors for the leaves of their names."""
        values = iter({n: leaf.detach() for n, leaf in self.leaves.items()} | moved)
        held = {name: leaf.detach() for name, leaf in self.leaves.items()} | moved
        given = dict(self.arguments)
        for name in self.names:
            given[name] = map_tensors(
                lambda tensor: held[next(values)] if tensor.is_floating_point() else tensor,
                self.arguments[name],
            )
        outputs = continuous(self.function(**given))
        return torch.stack([output.sum() for output in outputs]).sum()


def by_jvp(case: Directional, names: list[str]) -> Tensor | None:
    primals = {name: case.leaves[name].detach() for name in names}
    tangents = {name: case.directions[name] for name in names}
    _, tangent = torch.func.jvp(case.total, (primals,), (tangents,))
    return tangent


def by_dual(case: Directional, names: list[str]) -> Tensor | None:
    with forward_ad.dual_level():
        moved = {
            name: forward_ad.make_dual(case.leaves[name].detach(), case.directions[name])
            for name in names
        }
        return forward_ad.unpack_dual(case.total(moved)).tangent


def by_outer_jvp(case: Directional, names: list[str]) -> Tensor | None:
    """The tangent belongs to a transform outside of another one."""

    def outside(moved: dict[str, Tensor]) -> Tensor:
        def inside(factor: Tensor) -> Tensor:
            return factor * case.total(moved)

        return torch.func.jvp(inside, (torch.ones(()),), (torch.ones(()),))[1]

    primals = {name: case.leaves[name].detach() for name in names}
    tangents = {name: case.directions[name] for name in names}
    return torch.func.jvp(outside, (primals,), (tangents,))[1]


# The house's own, of an op and of a function, and torch's of an op of its own.
REFUSALS = ("has no derivative in forward mode", "torch.func transforms", "forward AD with")
MODES = {"jvp": by_jvp, "dual": by_dual, "outer jvp": by_outer_jvp}


@every_subject
@pytest.mark.parametrize("mode", MODES)
def test_the_tangent_is_right_or_refused(subject: Subject, mode: str) -> None:
    case = Directional(subject)
    for names in [[name] for name in case.leaves] + [list(case.leaves)]:
        expected = torch.stack([case.slopes[name] for name in names]).sum()
        message = ""
        try:
            tangent = MODES[mode](case, names)
        except NotImplementedError as error:
            message = str(error)
        if message:
            assert any(words in message for words in REFUSALS)
            continue
        assert tangent is not None
        torch.testing.assert_close(tangent.to(expected.dtype), expected)


def test_what_carries_no_tangent_is_computed() -> None:
    """Inside a transform, of tensors that have no part in it."""
    rows = torch.randn(4, 3)
    unit = sslfast.l2_normalize(rows)

    def weighed(factor: Tensor) -> Tensor:
        return factor * sslfast.l2_normalize(rows)

    value, tangent = torch.func.jvp(weighed, (torch.ones(()),), (torch.ones(()),))
    torch.testing.assert_close(value, unit)
    torch.testing.assert_close(tangent, unit)
    with forward_ad.dual_level():
        torch.testing.assert_close(sslfast.l2_normalize(rows), unit)
