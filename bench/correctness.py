"""The check that comes before the clock: the error rule, and bitwise repeatability."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sslfast._registry import LOSSES, PRIMITIVES, Tolerance
from sslfast.bench.contestants import EAGER, Contestant
from sslfast.bench.place import Place
from sslfast.bench.suite import Case, Inputs
from sslfast.testing import CaseReport, as_tuple, cast, compare, evaluate, threads

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """``failure`` names the tensor that breaks the rule and by how much; empty if none does."""

    error: float  # largest relative L2 error of values and gradients
    ratio: float  # largest ratio of such an error to that of eager
    failure: str = ""


class Standard:
    """What a case has to give: eager in float64, and how far eager in this precision is from it.

    Inputs are rounded to the precision and widened for the oracle, so that only arithmetic is
    judged; both run on the device of the case. A loss has its registered tolerance. A workload may
    have an oracle of its own. Where eager does not fit, the oracle is its chunked form on a GPU and
    the probe on a CPU.
    """

    def __init__(self, case: Case, place: Place | None = None) -> None:
        self._place = place = place or Place()
        workload = case.workload
        chunked = workload.chunked if place.is_gpu and workload.eager is None else None
        self._probe = None if place.is_gpu and chunked is not None else workload.probe
        self._case = case if self._probe is None else self._probe.at(case.shape)
        eager = chunked or self._case.workload.eager
        if eager is None:
            raise ValueError(f"{case.name} has neither an eager form nor a probe")
        baseline = Contestant(EAGER, eager)
        exact = Contestant(EAGER, self._case.workload.oracle or eager, autocast=False)
        self._inputs = self._case.inputs(place)
        loss = LOSSES.get(workload.subject)
        drawn = ((name, getattr(value, "data", value)) for name, value in self._inputs.items())
        arguments = {**workload.options, **dict(drawn)}
        self.tolerance = Tolerance() if loss is None else loss.tolerance(arguments)
        wide = cast(self._inputs, torch.float64, place.device)
        self._oracle = _results(self._case, exact, place, wide)
        del wide
        place.release()
        self._eager = _results(self._case, baseline, place, self._inputs)
        place.release()

    def judge(self, contestant: Contestant) -> Verdict:
        """The error rule on every output and gradient that a contestant gives."""
        if self._probe is not None:
            contestant = replace(contestant, objective=self._probe.fused)
        actual = _results(self._case, contestant, self._place, self._inputs)
        reports = tuple(
            compare(
                name,
                actual[name],
                self._eager[name],
                oracle,
                tolerance=self.tolerance,
                rounding=self._place.rounding,
            )
            for name, oracle in self._oracle.items()
            if name.removeprefix("gradient of ") not in contestant.without
        )
        error = max(report.kernel.relative_l2 for report in reports)
        judged = CaseReport(reports)
        return Verdict(error, judged.ratio, "; ".join(judged.failures[:1]))


def repeatability(
    case: Case, contestant: Contestant, place: Place | None = None, inputs: Inputs | None = None
) -> str:
    """``yes`` if values and gradients are bitwise the same again, on a CPU also with 1 thread."""
    place = place or Place()
    inputs = case.inputs(place) if inputs is None else inputs
    first = _results(case, contestant, place, inputs)
    moved = _different(first, _results(case, contestant, place, inputs))
    if moved:
        return f"no: {moved} differs when run again"
    if place.is_gpu:
        return "yes"
    with threads(1 if torch.get_num_threads() > 1 else 2):
        moved = _different(first, _results(case, contestant, place, inputs))
    return f"no: {moved} differs with 1 and 2 threads" if moved else "yes"


def _results(case: Case, contestant: Contestant, place: Place, inputs: Inputs) -> Results:
    """Values, in float32 at least, since losses differ in what they return, and gradients."""

    def objective(**arguments: object) -> tuple[Tensor, ...]:
        with contestant.casting(place):
            outputs = as_tuple(contestant.objective(**arguments))
        return tuple(o.to(_at_least_float32(o.dtype)) for o in outputs)

    with contestant.forcing():
        return evaluate(objective, inputs, contestant.leaves(case), _mutates(case))


def _mutates(case: Case) -> tuple[str, ...]:
    primitive = PRIMITIVES.get(case.workload.subject)
    return () if primitive is None else primitive.mutates


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _different(left: Results, right: Results) -> str:
    return ", ".join(name for name, value in left.items() if not torch.equal(value, right[name]))
