"""`torch.func`: grad, vjp and vmap of every primitive and loss, right or refused in words."""

from __future__ import annotations

import pytest
import torch
from test_forward_mode import Directional, Subject, every_subject
from torch import Tensor

# They have an autograd function of their own, not ops alone.
REFUSED = {
    "ListwiseWassersteinLoss",
    "MMCRLoss",
    "MixedBarlowTwinsLoss",
    "SIELoss",
    "SupConLoss",
    "TiCoLoss",
    "VIbCRegLoss",
    "VICRegLLoss",
    "VICRegLoss",
    "WMSELoss",
}
MESSAGE = r"has no rule for torch.func transforms \(grad, vjp, vmap\): take torch.autograd.grad"


def by_reverse(case: Directional, values: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    found = torch.autograd.grad(case.total(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@every_subject
def test_grad_and_vjp(subject: Subject) -> None:
    case = Directional(subject)
    values = {name: leaf.detach() for name, leaf in case.leaves.items()}
    if subject.name in REFUSED:
        with pytest.raises(NotImplementedError, match=MESSAGE):
            torch.func.grad(case.total)(values)
        return
    expected = by_reverse(case, values)
    torch.testing.assert_close(torch.func.grad(case.total)(values), expected)
    value, pull = torch.func.vjp(case.total, values)
    torch.testing.assert_close(pull(torch.ones_like(value))[0], expected)


@every_subject
def test_vmap(subject: Subject) -> None:
    """Two batches at once are as each of them alone, values and gradients."""
    case = Directional(subject)
    batches = [
        {name: leaf.detach() + step * case.directions[name] for name, leaf in case.leaves.items()}
        for step in (0.0, 0.1)
    ]
    stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
    if subject.name in REFUSED:
        with pytest.raises(NotImplementedError, match=MESSAGE):
            torch.func.vmap(case.total)(stacked)
        return
    values = torch.func.vmap(case.total)(stacked)
    torch.testing.assert_close(values, torch.stack([case.total(batch) for batch in batches]))
    found = torch.func.vmap(torch.func.grad(case.total))(stacked)
    expected = [by_reverse(case, batch) for batch in batches]
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, torch.stack([each[name] for each in expected]))


@every_subject
def test_second_derivative_is_refused(subject: Subject) -> None:
    """`torch.func.grad` of `grad` takes the ops' way through a graph of the backward pass."""
    case = Directional(subject)
    values = {name: leaf.detach() for name, leaf in case.leaves.items()}

    def slope(moved: dict[str, Tensor]) -> Tensor:
        found = torch.func.grad(case.total)(moved)
        return torch.stack([(found[n] * case.directions[n]).sum() for n in found]).sum()

    if subject.name in ("ListMLELoss", "ListNetLoss"):  # torch's ops alone: it is right
        torch.func.grad(slope)(values)
        return
    with pytest.raises((NotImplementedError, RuntimeError), match=r"second derivative|has no rule"):
        torch.func.grad(slope)(values)
