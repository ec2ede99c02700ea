"""TiCo: its state, its gradient, what it saves, and every error message."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslfast.functional import tico_loss
from sslfast.losses import TiCoLoss

MATRIX = torch.ones(2, 3)


def views(
    num_rows: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, num_rows, dim, generator=generator, dtype=torch.float64)
    return tuple(view.to(dtype).requires_grad_() for view in pair)


def gradients(loss: Tensor, pair: tuple[Tensor, ...]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, pair)]


def test_equal_views_along_the_axes():
    """Each of D axes once: B = I / D, so the contrast is (1 - beta) / D."""
    rows = torch.eye(5)
    assert tico_loss(rows, rows, beta=0.75, rho=2.0).item() == pytest.approx(2.0 * 0.25 / 5)
    assert tico_loss(rows, -rows, rho=0.0).item() == pytest.approx(2.0)


def test_module_and_functional_agree_with_and_without_update():
    loss = TiCoLoss(beta=0.6, rho=3.0)
    for step in range(4):
        pair = views(19, 23, seed=step)
        past = None if loss.C is None else loss.C.clone()
        expected = gradients(tico_loss(*pair, covariance=past, beta=0.6, rho=3.0), pair)
        assert_same = torch.testing.assert_close
        assert_same(gradients(loss(*pair, update_covariance_matrix=False), pair), expected)
        assert past is None or torch.equal(loss.C, past)
        assert_same(gradients(loss(*pair), pair), expected)


def test_covariance_is_written_in_place_while_earlier_graphs_live():
    loss = TiCoLoss()
    first, second = views(8, 4, seed=0), views(8, 4, seed=1)
    loss(*views(8, 4, seed=2))
    past, pointer = loss.C.clone(), loss.C.data_ptr()
    early, late = loss(*first), loss(*second)
    assert loss.C.data_ptr() == pointer
    expected = gradients(tico_loss(*first, covariance=past), first)
    torch.testing.assert_close(gradients(early, first), expected)
    late.backward()


def test_covariance_survives_a_checkpoint_and_moves_with_the_module():
    loss, again = TiCoLoss(), TiCoLoss()
    assert loss.state_dict() == {}
    loss(*views(8, 4))
    assert list(loss.state_dict()) == ["C"]
    again.load_state_dict(loss.state_dict())
    assert again.C.data_ptr() != loss.C.data_ptr()
    pair = views(8, 4, seed=1)
    assert torch.equal(loss(*pair), again(*pair))
    assert torch.equal(loss.C, again.C)
    assert loss.to("meta").C.is_meta
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({})
    wrapped = torch.nn.Sequential(TiCoLoss())
    wrapped.load_state_dict({"0.C": again.C})
    assert torch.equal(wrapped[0].C, again.C)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_embeddings_keep_a_float32_covariance(dtype):
    loss = TiCoLoss()
    for step in range(3):
        value = loss(*views(8, 4, seed=step, dtype=dtype))
    assert (value.dtype, loss.C.dtype) == (torch.float32, torch.float32)
    loss.half()
    loss(*views(8, 4, dtype=dtype))
    assert loss.C.dtype == torch.float32


def test_autocast_does_not_round_the_covariance():
    pair = views(16, 8, dtype=torch.float32)
    loss, cast = TiCoLoss(), TiCoLoss()
    expected = gradients(loss(*pair), pair)
    with torch.autocast("cpu", torch.bfloat16):
        value = cast(*pair)
    torch.testing.assert_close(gradients(value, pair), expected)
    assert torch.equal(loss.C, cast.C)


def test_a_past_covariance_may_learn():
    pair = views(5, 3)
    covariance = torch.eye(3, dtype=torch.float64, requires_grad=True)

    def loss(first: Tensor, covariance: Tensor) -> Tensor:
        return tico_loss(first, pair[1], covariance=covariance, beta=1.0)

    assert torch.autograd.gradcheck(loss, (pair[0], covariance))


def test_a_second_derivative_raises():
    pair = views(5, 3)
    value = tico_loss(*pair, covariance=torch.eye(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value, pair[0], create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_module_compiles_to_one_graph():
    torch.compiler.reset()
    pair = views(9, 4, dtype=torch.float32)
    loss, compiled_loss = TiCoLoss(), TiCoLoss()
    compiled = torch.compile(compiled_loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(gradients(compiled(*pair), pair), gradients(loss(*pair), pair))
    torch.testing.assert_close(compiled_loss.C, loss.C)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings1": torch.ones(3, 3)}, ValueError, r"embeddings1 must have the shape of"),
        ({"embeddings0": torch.ones(2, 3, 1)}, ValueError, "embeddings0 must be a matrix"),
        ({"embeddings0": torch.ones(0, 3)}, ValueError, "embeddings0 must have at least one row"),
        ({"embeddings0": torch.ones(2, 3).long()}, TypeError, "embeddings0 must be floating"),
        ({"beta": 1.5}, ValueError, "beta must be finite and at most 1, got 1.5"),
        ({"beta": -0.1}, ValueError, "beta must be finite and at least 0, got -0.1"),
        ({"rho": math.nan}, ValueError, "rho must be finite and at least 0, got nan"),
        ({"rho": "8"}, TypeError, "rho must be a number, got str"),
        ({"covariance": torch.eye(4)}, ValueError, r"covariance must have shape .* got .*4, 4"),
        ({"covariance": torch.eye(3).long()}, TypeError, "covariance must be floating"),
        (
            {"covariance": torch.eye(3, device="meta")},
            ValueError,
            "covariance must be on the device",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tico_loss(**{"embeddings0": MATRIX, "embeddings1": MATRIX, **arguments})


def test_bad_arguments_of_the_module():
    with pytest.raises(ValueError, match="beta must be"):
        TiCoLoss(beta=2.0)
    with pytest.raises(ValueError, match="rho must be"):
        TiCoLoss(rho=-1.0)
    loss = TiCoLoss()
    with pytest.raises(ValueError, match="z_b must have the shape of z_a"):
        loss(MATRIX, torch.ones(2, 4))
    loss(MATRIX, MATRIX)
    with pytest.raises(ValueError, match=r"C, the covariance .* must have shape \(D, D\) = \(4, 4"):
        loss(torch.ones(2, 4), torch.ones(2, 4))
