"""InfoNCE: the formula, how MoCo v1 to v3 and in-batch use map to it, its queue, its errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import leaves, unit_rows, views

from sslfast.functional import clip_loss, infonce_loss, ntxent_loss
from sslfast.losses import InfoNCELoss
from sslfast.losses.contrastive.infonce import _infonce_eager

MATRIX = torch.ones(2, 3)
FORMS = [{}, {"symmetric": True}, {"negatives": unit_rows(7, 5)}]


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_equation_4_written_out(normalize):
    queries, keys = views(num_images=4)
    q, k = (F.normalize(x) if normalize else x for x in (queries, keys))
    exps = [[math.exp(float(q[i] @ k[j]) / 0.3) for j in range(4)] for i in range(4)]
    forward = [-math.log(exps[i][i] / sum(exps[i])) for i in range(4)]
    backward = [-math.log(exps[i][i] / sum(row[i] for row in exps)) for i in range(4)]
    options = {"temperature": 0.3, "normalize": normalize}
    assert infonce_loss(queries, keys, **options).item() == pytest.approx(sum(forward) / 4)
    both = infonce_loss(queries, keys, symmetric=True, **options)
    assert both.item() == pytest.approx((sum(forward) + sum(backward)) / 8)


def test_moco_v1_is_a_cross_entropy_over_the_positive_and_the_queue():
    queries, keys = leaves()
    queue = unit_rows(9, 5)
    loss = infonce_loss(queries, keys.detach(), temperature=0.07, negatives=queue)
    q, k = F.normalize(queries), F.normalize(keys.detach())
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, queries), torch.autograd.grad(expected, queries)
    )


def test_moco_v3_is_both_views_against_detached_keys_times_twice_the_temperature():
    q1, q2 = leaves(seed=1)
    k1, k2 = views(seed=2)
    loss = 2 * 0.2 * sum(infonce_loss(q, k, temperature=0.2) for q, k in ((q1, k2), (q2, k1)))
    expected = 0.0
    for query, key in ((q1, k2), (q2, k1)):
        logits = torch.einsum("nc,mc->nm", F.normalize(query), F.normalize(key)) / 0.2
        expected = expected + 2 * 0.2 * F.cross_entropy(logits, torch.arange(6))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (q1, q2)), torch.autograd.grad(expected, (q1, q2))
    )


def test_agrees_with_its_relatives():
    queries, keys = views()
    queue = unit_rows(4, 5)
    torch.testing.assert_close(
        infonce_loss(queries, keys, temperature=0.2, negatives=queue),
        ntxent_loss(queries, keys, temperature=0.2, negatives=queue),
    )
    torch.testing.assert_close(
        infonce_loss(queries, keys, temperature=0.2, symmetric=True),
        clip_loss(F.normalize(queries), F.normalize(keys), logit_scale=5.0),
    )


@pytest.mark.parametrize("options", FORMS, ids=["batch", "symmetric", "queue"])
def test_every_gradient_there_is(options):
    names = [
        *("queries", "keys", "temperature"),
        *(["negatives"] if "negatives" in options else []),
    ]
    results = []
    for function in (infonce_loss, _infonce_eager):
        given = dict(zip(("queries", "keys"), views(), strict=True)) | options
        given["temperature"] = torch.tensor(0.2, dtype=torch.float64)
        for name in names:
            given[name] = given[name].clone().requires_grad_()
        results.append(torch.autograd.grad(function(**given), [given[name] for name in names]))
    assert all(gradient.abs().max() > 1e-4 for gradient in results[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", FORMS, ids=["batch", "symmetric", "queue"])
def test_gradcheck(options):
    queries, keys = leaves(3)
    temperature = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def function(queries, keys, temperature):
        return infonce_loss(queries, keys, temperature=temperature, **options)

    assert torch.autograd.gradcheck(function, (queries, keys, temperature))


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_pair_has_no_negative_so_loss_and_gradient_are_zero(symmetric):
    queries, keys = leaves(1)
    loss = infonce_loss(queries, keys, symmetric=symmetric)
    gradients = torch.autograd.grad(loss, (queries, keys))
    assert loss.item() == 0.0
    assert all(torch.equal(gradient, torch.zeros(1, 5).double()) for gradient in gradients)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_known_values_and_their_digits(temperature):
    basis = torch.eye(8, dtype=torch.float64)
    expected = math.log1p(7 * math.exp(-1 / temperature))
    for options in ({}, {"symmetric": True}):
        loss = infonce_loss(basis, basis, temperature=temperature, **options)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
    same = torch.ones(8, 3, dtype=torch.float64)
    assert infonce_loss(same, same, temperature=temperature).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("options", FORMS, ids=["batch", "symmetric", "queue"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
def test_half_precision_gives_a_finite_float32_loss_and_half_gradients(temperature, dtype, options):
    queries, keys = leaves(16, dtype=dtype)
    loss = infonce_loss(queries, keys, temperature=temperature, **options)
    wide = infonce_loss(queries.double(), keys.double(), temperature=temperature, **options)
    assert loss.dtype == (torch.float64 if "negatives" in options else torch.float32)
    torch.testing.assert_close(loss.double(), wide, rtol=0.03, atol=0.03)
    for gradient in torch.autograd.grad(loss, (queries, keys)):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("options", FORMS, ids=["batch", "symmetric", "queue"])
def test_autocast_rounds_positives_and_negatives_alike(options):
    if "negatives" in options:
        options = {"negatives": options["negatives"].float()}
    queries, keys = leaves(12, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = infonce_loss(queries, keys, temperature=0.02, **options)
        same = infonce_loss(queries, queries, temperature=0.001)
    exact = infonce_loss(queries, keys, temperature=0.02, **options)
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)
    assert torch.autograd.grad(loss, queries)[0].dtype == torch.float32
    assert same >= 0


def test_queue_is_read_before_the_keys_enter_and_rests_in_evaluation():
    loss = InfoNCELoss(0.1, memory_bank_size=(8, 5)).double()
    before = loss.memory_bank.bank.clone()
    queries, keys = views(3)
    expected = infonce_loss(queries, keys, temperature=0.1, negatives=before)
    torch.testing.assert_close(loss(queries, keys), expected)
    assert torch.equal(loss.memory_bank.bank, before)
    torch.testing.assert_close(loss(queries.requires_grad_(), keys), expected)
    torch.testing.assert_close(loss.memory_bank.bank[:3], F.normalize(keys))
    assert torch.equal(loss.memory_bank.bank[3:], before[3:])
    assert loss.memory_bank.bank_ptr.tolist() == [3]
    assert loss.state_dict() == {}


def test_queue_keeps_rows_as_they_are_without_normalisation():
    loss = InfoNCELoss(0.1, memory_bank_size=(8, 5), normalize=False).double()
    queries, keys = leaves(3)
    loss(queries, keys)
    assert torch.equal(loss.memory_bank.bank[:3], keys.detach())


def test_module_hands_its_options_on():
    queries, keys = views()
    for options in (
        {"temperature": 0.2},
        {"symmetric": True, "normalize": False},
        {"gather_distributed": True},
    ):
        expected = infonce_loss(queries, keys, **options)
        torch.testing.assert_close(InfoNCELoss(**options)(queries, keys), expected)
    loss = InfoNCELoss(torch.nn.Parameter(torch.tensor(0.2)))
    loss(queries, keys).backward()
    assert loss.temperature.grad.abs() > 0
    assert "symmetric=False, gather_distributed=False" in str(loss)


@pytest.mark.parametrize("options", [{"memory_bank_size": (7, 5)}, {"symmetric": True}])
def test_compiles_without_a_graph_break(options):
    torch.compiler.reset()
    torch.manual_seed(0)
    loss = InfoNCELoss(0.2, **options)
    twin = copy.deepcopy(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in range(3):
        pair = leaves(4, seed=step)
        actual, expected = compiled(*pair), twin(*pair)
        torch.testing.assert_close(actual, expected)
        gradients = (torch.autograd.grad(each, pair) for each in (actual, expected))
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(loss.memory_bank.bank, twin.memory_bank.bank)


@pytest.mark.parametrize(
    ("queries", "keys", "error", "message"),
    [
        (MATRIX, torch.ones(3, 3), ValueError, r"keys must have the shape of queries .*\(3, 3\)"),
        (torch.ones(3), MATRIX, ValueError, r"queries must be a matrix .* got shape \(3,\)"),
        (torch.ones(0, 3), torch.ones(0, 3), ValueError, r"queries must have at least one row"),
        (MATRIX.long(), MATRIX, TypeError, r"queries must be floating point .* got torch.int64"),
        (MATRIX, [[1.0]], TypeError, r"keys must be a tensor, got list"),
        (MATRIX, MATRIX.to("meta"), ValueError, r"keys must be on the device of .* got meta"),
    ],
)
def test_errors_name_queries_and_keys(queries, keys, error, message):
    for function in (infonce_loss, InfoNCELoss(), InfoNCELoss(memory_bank_size=(4, 3))):
        with pytest.raises(error, match="^" + message):
            function(queries, keys)


@pytest.mark.parametrize("value", [0.0, -0.1, math.inf, math.nan])
def test_errors_name_the_temperature(value):
    message = f"^temperature must be finite and at least 1e-8, got {value}"
    for make in (float, torch.tensor):
        with pytest.raises(ValueError, match=message):
            infonce_loss(MATRIX, MATRIX, temperature=make(value))
        with pytest.raises(ValueError, match=message):
            InfoNCELoss(make(value))
    for loss in (InfoNCELoss(), InfoNCELoss(memory_bank_size=(4, 3))):
        loss.temperature = value
        with pytest.raises(ValueError, match=message):
            loss(torch.ones(2, 3, requires_grad=True), MATRIX)
        if loss.memory_bank.size[0]:
            assert loss.memory_bank.bank_ptr.item() == 0


@pytest.mark.parametrize(
    ("negatives", "error", "message"),
    [
        (torch.ones(4, 2), ValueError, r"must have the 3 features of queries, got shape \(4, 2\)"),
        (torch.ones(0, 3), ValueError, r"must have at least one row, got shape \(0, 3\)"),
        (torch.ones(4, 3).int(), TypeError, r"must be floating point .* got torch.int32"),
        (torch.ones(4, 3, device="meta"), ValueError, r"must be on the device .* got meta"),
    ],
)
def test_errors_name_the_negatives(negatives, error, message):
    with pytest.raises(error, match="^negatives " + message):
        infonce_loss(MATRIX, MATRIX, negatives=negatives)


def test_errors_name_options_that_do_not_go_together():
    for name in ("symmetric", "gather_distributed"):
        with pytest.raises(ValueError, match=rf"^{name} must be False when negatives .* got True"):
            infonce_loss(MATRIX, MATRIX, negatives=MATRIX, **{name: True})
    with pytest.raises(ValueError, match=r"^symmetric must be False .* memory_bank_size=\(4, 3\)"):
        InfoNCELoss(memory_bank_size=(4, 3), symmetric=True)


def test_distributed_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^gather_distributed must be False: this torch has no"):
        InfoNCELoss(gather_distributed=True)
