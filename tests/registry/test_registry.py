"""Whatever is registered is exported, documented, sampled and costed."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import pytest
import torch
from torch import nn

import sslfast
from sslfast import _backends, _library, functional, losses
from sslfast._core.tree import floating, map_tensors, tensors
from sslfast._registry import (
    LOSSES,
    PRIMITIVES,
    Loss,
    Primitive,
    Sample,
    register_loss,
    register_primitive,
)

primitives = pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES)
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

SIZES = {"tiny", "ragged", "typical", "extreme"}
MAX_CONTRACT_LINES = 300


def test_something_is_registered() -> None:
    assert {"l2_normalize", "similarity_logsumexp"} <= set(PRIMITIVES)
    assert "NTXentLoss" in LOSSES


@primitives
def test_primitive_is_public(primitive: Primitive) -> None:
    assert primitive.name in sslfast.__all__
    assert getattr(sslfast, primitive.name) is primitive.function
    assert getattr(sslfast.ops, primitive.name) is primitive.function
    assert hasattr(torch.ops.sslfast, primitive.name)
    learns = primitive.backward_op is not None
    assert hasattr(torch.ops.sslfast, f"{primitive.name}_backward") == learns


def test_every_contract_registers_its_primitive() -> None:
    """Each in a file of its own in a family's folder, exported from there on."""
    registered = dict(PRIMITIVES)
    names = [each.name for each in walk_packages(sslfast.ops.__path__, "sslfast.ops.")]
    specs = {name: getattr(import_module(name), "SPEC", None) for name in names}
    contracts = {name: spec for name, spec in specs.items() if spec is not None}
    assert {spec.name for spec in contracts.values()} == set(registered)
    for name, spec in contracts.items():
        assert inspect.getmodule(spec.function).__name__ == name
        assert re.fullmatch(r"sslfast\.ops\.[a-z]+\.\w+", name), name


@primitives
def test_primitive_is_documented(primitive: Primitive) -> None:
    module = inspect.getmodule(primitive.function)
    assert module is not None
    assert "Never materialised" in (module.__doc__ or "")
    assert len(inspect.getsource(module).splitlines()) <= MAX_CONTRACT_LINES
    text = primitive.function.__doc__ or ""
    for section in ("Args:", "Returns:", "Raises:", "Differs from"):
        assert section in text, section
    for name in inspect.signature(primitive.function).parameters:
        assert re.search(rf"^\s+{name}: ", text, re.MULTILINE), name
    assert primitive.equation
    assert primitive.never_builds
    assert primitive.serves


@primitives
def test_reference_has_the_signature_of_the_function(primitive: Primitive) -> None:
    function, reference = map(inspect.signature, (primitive.function, primitive.reference))
    assert function.parameters == reference.parameters
    assert {*primitive.differentiable, *primitive.mutates} <= set(function.parameters)


@primitives
def test_primitive_is_sampled(primitive: Primitive, generator: torch.Generator) -> None:
    names = [sample.name for sample in primitive.samples]
    assert len(names) == len(set(names))
    assert {sample.size for sample in primitive.samples} == SIZES
    seen: set[str] = set()
    for sample in primitive.samples:
        arguments = sample.make(generator)
        seen |= set(arguments)
        assert all(value.dtype == torch.float64 for value in floating(arguments))
    assert {*primitive.differentiable, *primitive.mutates} <= seen


@primitives
def test_samples_are_reproducible(primitive: Primitive) -> None:
    for sample in primitive.samples:
        first, second = (sample.make(torch.Generator().manual_seed(3)) for _ in range(2))
        assert first.keys() == second.keys()
        for (name, value), (again, same) in zip(tensors(first), tensors(second), strict=True):
            assert name == again
            torch.testing.assert_close(value, same, rtol=0, atol=0)
        options, others = (map_tensors(lambda tensor: None, each) for each in (first, second))
        assert options == others


@primitives
def test_primitive_is_costed(primitive: Primitive) -> None:
    """On meta tensors too, so that a size that fits nowhere has a cost."""
    for sample in primitive.samples:
        if sample.size != "typical":
            continue
        real = sample.make(torch.Generator().manual_seed(0))
        meta = map_tensors(lambda tensor: tensor.to("meta"), real)
        for formula in (primitive.flops, primitive.bytes, primitive.peak_bytes):
            whole, forward = formula(**meta), formula(**meta, backward=False)
            assert isinstance(whole, int)
            assert whole == formula(**real)
            # A peak is a maximum: the backward pass need not reach that of the forward pass.
            learns = primitive.backward_op is not None
            assert whole >= forward + (learns and formula is not primitive.peak_bytes)
            assert forward > 0
    assert primitive.memory, "no form whose peak memory is measured"


@primitives
def test_matrix_instructions_serve_what_is_made_of_products(primitive: Primitive) -> None:
    """The native ops with matrix kernels, and they alone, are told how float32 multiplies."""
    if _library.missing_reason() is not None:
        pytest.skip("no native library")
    native = getattr(torch.ops.sslfast_native, f"{primitive.name}_cpu", None)
    taken = [] if native is None else [each.name for each in native.default._schema.arguments]
    assert ("float_terms" in taken) == primitive.products


@primitives
def test_primitive_is_implemented(primitive: Primitive) -> None:
    assert {"reference", "cpu"} <= set(primitive.implementations) <= set(_backends.BACKENDS)
    for implementation in primitive.implementations.values():
        dtypes = set(implementation.dtypes)
        # The first tensor's: of rows, or of images and indices alone.
        if any(dtype.is_floating_point for dtype in dtypes):
            assert {torch.float32, torch.bfloat16, torch.float16} <= dtypes
        else:
            firsts = {first_tensor(sample).dtype for sample in primitive.samples}
            assert firsts <= dtypes
    for backend, _dtype in primitive.tolerances:
        assert backend.partition(":")[0] in primitive.implementations
    for tolerance in primitive.tolerances.values():
        assert tolerance.reason != "the general rule"


def first_tensor(sample: Sample) -> torch.Tensor:
    _, first = next(tensors(sample.make(torch.Generator().manual_seed(0))))
    return first


@every_loss
def test_loss_is_public_and_documented(loss: Loss) -> None:
    assert getattr(losses, loss.name) is loss.module
    assert loss.functional.__name__ in functional.__all__
    assert getattr(functional, loss.functional.__name__) is loss.functional
    family = import_module(f"sslfast.losses.{loss.family}")
    assert getattr(family, loss.functional.__name__) is loss.functional
    for text in (loss.module.__doc__, loss.functional.__doc__):
        assert text
        assert "Args:" in text
        assert "Differs from" in text
    assert issubclass(loss.module, nn.Module)
    assert set(loss.primitives) <= set(PRIMITIVES)
    assert loss.paper
    assert {sample.size for sample in loss.samples} == SIZES
    assert len({sample.name for sample in loss.samples}) == len(loss.samples)
    assert set(loss.constants) <= set(inspect.signature(loss.functional).parameters)


@every_loss
def test_eager_has_the_signature_of_the_loss(loss: Loss) -> None:
    assert inspect.signature(loss.functional) == inspect.signature(loss.eager)


@pytest.mark.parametrize(
    ("register", "spec"),
    [(register_primitive, spec) for spec in PRIMITIVES.values()]
    + [(register_loss, spec) for spec in LOSSES.values()],
)
def test_registering_twice_raises(register: Any, spec: Any) -> None:
    with pytest.raises(ValueError, match=f"{spec.name}' is registered twice"):
        register(spec)
