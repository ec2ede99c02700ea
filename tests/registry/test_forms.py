"""No loss calls a primitive in a form that no sample of the primitive has.

Kernels are proven by the samples of their primitives: on every instruction set, in every layout, in
Triton's interpreter. A loss runs by default, and elsewhere at its first ragged sample alone. That
is enough where these have whatever a loss asks for: which arguments are there, which options are
set, what is kept for the backward pass, which gradients are wanted, and each two of these together.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pytest
import test_frobenius
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sslfast._core.similarity.logsumexp_keep import Keep
from sslfast._registry import LOSSES, PRIMITIVES, Loss, Primitive, Sample
from sslfast.testing import as_tuple, cast

Setting = tuple[str, Any]  # an argument of an op, and what it is
Form = tuple[str, Setting, Setting]
UNSEEN = ("backend", "cache_elements")  # who runs it, and for how much there is room
# Arguments that no public function takes, and the test that runs them on every backend.
ELSEWHERE = {
    ("cross_frobenius", name): test_frobenius.test_columns_treated_as_they_are_read
    for name in ("a_columns", "b_columns")
}


class Recorder(TorchDispatchMode):
    """The forms in which the primitives' ops are called, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: set[Form] = set()
        self._ops = {op._opoverload: name for name, spec in PRIMITIVES.items() for op in spec.ops}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self._ops:
            primitive = self._ops[func]
            names = [each.name for each in func._schema.arguments]
            settings = [
                (name, Keep(value).name if name == "keep" else told(value))
                for name, value in zip(names, args, strict=True)
                if name not in UNSEEN and (primitive, name) not in ELSEWHERE
            ]
            self.forms.update((func.name(), *pair) for pair in combinations(settings, 2))
        return func(*args, **(kwargs or {}))


def told(value: Any) -> Any:
    """What makes a kernel take another path; numbers and sizes do not."""
    if isinstance(value, Tensor):
        empty, single = value.numel() == 0, value.shape in ((), (1,))
        return "empty" if empty else "one element" if single else "tensor"
    if isinstance(value, (list, tuple)):
        return "more than two" if len(value) > 2 else len(value)
    return value if isinstance(value, (bool, str, type(None))) else type(value).__name__


def forms_of(spec: Primitive | Loss, samples: Iterable[Sample]) -> set[Form]:
    """A primitive's as `test_numbers` runs it: all learn, or the first argument alone."""
    function = spec.functional if isinstance(spec, Loss) else spec.function
    with Recorder() as recorder:
        for sample in samples:
            arguments = cast(sample.make(torch.Generator().manual_seed(2026)), torch.float32)
            learning = spec.learning(arguments)
            for names in (learning, learning[: None if isinstance(spec, Loss) else 1]):
                leaves = {name: arguments[name].clone().requires_grad_() for name in names}
                outputs = as_tuple(function(**{**arguments, **leaves}))
                sums = [each.sum() for each in outputs if each.requires_grad]
                torch.autograd.grad(sums, list(leaves.values()), allow_unused=True)
    return recorder.forms


def ragged(spec: Primitive | Loss) -> list[Sample]:
    return [sample for sample in spec.samples if sample.size == "ragged"]


@pytest.fixture(scope="module")
def proven() -> set[Form]:
    """The forms of the primitives' own samples, and of the losses' first."""
    every = [forms_of(spec, ragged(spec)) for spec in PRIMITIVES.values()]
    every += [forms_of(loss, ragged(loss)[:1]) for loss in LOSSES.values()]
    return set().union(*every)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.name)
def test_primitives_have_a_sample_for_every_form(loss: Loss, proven: set[Form]) -> None:
    missing = forms_of(loss, ragged(loss)) - proven
    text = "\n".join(
        f"{op}: {first} with {second}" for op, first, second in sorted(missing, key=str)
    )
    assert not missing, f"give a primitive a ragged sample that has\n{text}"


def test_a_form_without_a_sample_is_noticed() -> None:
    """A queue learns nothing, which no sample with every gradient shows."""
    queue = [s for s in LOSSES["InfoNCELoss"].samples if s.name == "ragged_queue"]
    asked = forms_of(LOSSES["InfoNCELoss"], queue)
    keeping = {second for _, *pair in asked for second in pair if second[0] == "keep"}
    assert ("keep", Keep.MEAN_KEYS.name) in keeping
    symmetric = forms_of(LOSSES["NTXentLoss"], ragged(LOSSES["NTXentLoss"])[:1])
    assert asked - symmetric
