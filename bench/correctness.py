"""The check that comes before the clock: the error rule, and bitwise repeatability."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sslfast.bench.contestants import EAGER, Contestant
from sslfast.bench.suite import Case
from sslfast.testing import CaseReport, cast, compare, evaluate, threads

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """``failure`` names the tensor that breaks the rule and by how much; empty if none does."""

    error: float  # largest relative L2 error of values and gradients
    ratio: float  # largest ratio of such an error to that of eager
    failure: str = ""


class Standard:
    """What a case has to give: eager in float64, and how far eager in float32 is from it.

    Inputs are drawn in float32 and widened for the oracle, so that only arithmetic is judged.
    """

    def __init__(self, case: Case) -> None:
        self._probe = case.workload.probe
        self._case = case if self._probe is None else self._probe.at(case.shape)
        eager = self._case.workload.eager
        if eager is None:
            raise ValueError(f"{case.name} has neither an eager form nor a probe")
        self._oracle = _results(self._case, Contestant(EAGER, eager), torch.float64)
        self._eager = _results(self._case, Contestant(EAGER, eager))

    def judge(self, contestant: Contestant) -> Verdict:
        """The error rule on every output and gradient of a contestant."""
        if self._probe is not None:
            contestant = replace(contestant, objective=self._probe.fused)
        actual = _results(self._case, contestant)
        reports = tuple(
            compare(name, actual[name], self._eager[name], oracle)
            for name, oracle in self._oracle.items()
        )
        error = max(report.kernel.relative_l2 for report in reports)
        judged = CaseReport(reports)
        return Verdict(error, judged.ratio, "; ".join(judged.failures[:1]))


def repeatability(case: Case, contestant: Contestant) -> str:
    """``yes`` if values and gradients are bitwise the same again and with 1 and 2 threads."""
    first = _results(case, contestant)
    moved = _different(first, _results(case, contestant))
    if moved:
        return f"no: {moved} differs when run again"
    with threads(1 if torch.get_num_threads() > 1 else 2):
        moved = _different(first, _results(case, contestant))
    return f"no: {moved} differs with 1 and 2 threads" if moved else "yes"


def _results(case: Case, contestant: Contestant, dtype: torch.dtype = torch.float32) -> Results:
    with contestant.forcing():
        return evaluate(contestant.objective, cast(case.inputs(), dtype), case.workload.leaves)


def _different(left: Results, right: Results) -> str:
    return ", ".join(name for name, value in left.items() if not torch.equal(value, right[name]))
