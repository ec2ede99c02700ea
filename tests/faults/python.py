"""Faults in launchers, ops, losses, distributed code and the error rule itself."""

from __future__ import annotations

from fault import Fault

NUMBERS = (
    "test_ops_numbers.py test_ops_gradients.py test_ops_layout.py test_ops_registration.py -k "
)
RANKS = "test_distributed.py test_distributed_redundancy.py test_distributed_state.py"


def op(primitive: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    return Fault(kind, f"sslfast/{file}", where, old, new, f"{NUMBERS} {primitive}")


def loss(name: str, own: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    path = f"sslfast/losses/{file}"
    return Fault(
        kind, path, where, old, new, f"test_losses.py {own} -k '{name} or not test_losses.py'"
    )


def ranks(kind: str, file: str, where: str, old: str, new: str) -> Fault:
    return Fault(kind, f"sslfast/{file}", where, old, new, RANKS)


FAULTS = (
    op(
        "similarity_logsumexp",
        "contiguous missing",
        "cpu/similarity_logsumexp.py",
        "None if each is None else {} for",
        "each.contiguous()",
        "each",
    ),
    op(
        "similarity_logsumexp",
        "contiguous missing (cotangent)",
        "cpu/similarity_logsumexp.py",
        "            {},\n            dcols.contiguous(),",
        "drows.contiguous()",
        "drows",
    ),
    op(
        "l2_normalize",
        "half precision is not widened",
        "ops/_operands.py",
        "return tensor.to({}).contiguous()",
        "accumulator(tensor.dtype)",
        "tensor.dtype",
    ),
    op(
        "l2_normalize",
        "norm of the rounded rows",
        "cpu/l2_normalize.py",
        "{}, _rows(embeddings), norm",
        "_rows(dnormalized)",
        "_rows(dnormalized.bfloat16().to(dnormalized.dtype))",
    ),
    op(
        "standardize",
        "options in the wrong order",
        "cpu/standardize.py",
        "return rule.ddof, rule.eps, {}",
        'rule.eps_on == "deviation", rule.unit_variance',
        'rule.unit_variance, rule.eps_on == "deviation"',
    ),
    op(
        "cross_frobenius",
        "gradient of one side (reference)",
        "ops/_frobenius_reference.py",
        "sides = {}\n",
        "2 if arguments.b is None else 1",
        "1",
    ),
    op(
        "cross_frobenius",
        "diagonal left in (reference)",
        "ops/_frobenius_reference.py",
        "total = total - {}\n",
        "diagonal.square().sum()",
        "0",
    ),
    op(
        "similarity_topk",
        "one side of the symmetric gradient",
        "ops/_topk_gradient.py",
        "return Gradients({}, empty) if keys is None",
        "dqueries + dkeys",
        "dqueries",
    ),
    loss(
        "NTXentLoss",
        "test_losses_contrastive.py",
        "temperature inverted",
        "contrastive/ntxent.py",
        "    scale = {}\n    # First",
        "inverse(temperature, rows)",
        "inverse(inverse(temperature, rows), rows)",
    ),
    loss(
        "NTXentLoss",
        "test_losses_contrastive.py",
        "one view detached",
        "contrastive/ntxent.py",
        "rows = round_like_tiles(l2_normalize(torch.cat((embeddings0, {}))))",
        "embeddings1",
        "embeddings1.detach()",
    ),
    loss(
        "NTXentLoss",
        "test_losses_contrastive.py",
        "unrounded positives beside rounded tiles",
        "contrastive/ntxent.py",
        "rows = {}  # (2N, D)",
        "round_like_tiles(l2_normalize(torch.cat((embeddings0, embeddings1))))",
        "l2_normalize(torch.cat((embeddings0, embeddings1)).float())",
    ),
    loss(
        "NTXentLoss",
        "test_losses_memory_bank.py",
        "bank updated in evaluation",
        "contrastive/ntxent.py",
        "update={})",
        "out0.requires_grad",
        "True",
    ),
    loss(
        "NTXentLoss or DCLLoss or HardNegative",
        "test_losses_contrastive.py",
        "sum in half precision (row products)",
        "_reduce.py",
        "return (left.to(dtype) * right.to(dtype)).sum({})",
        "-1",
        "-1, dtype=torch.bfloat16).to(dtype",
    ),
    loss(
        "NTXentLoss",
        "test_losses_contrastive.py",
        "mean over the padded length",
        "_reduce.py",
        "return chunks.sum(1).sum() / {}",
        "flat.numel()",
        "chunks.numel()",
    ),
    loss(
        "VICRegLoss",
        "test_losses_vicreg.py",
        "weight of another term",
        "redundancy/vicreg.py",
        "loss = lambda_param * similarity\n    loss = loss + {} * (0.5 if",
        "mu_param",
        "nu_param",
    ),
    loss(
        "VICRegLoss",
        "test_losses_vicreg.py",
        "option inverted",
        "redundancy/vicreg.py",
        "mu_param * (0.5 if {} else 1.0) * variance\n",
        "halve_variance",
        "not halve_variance",
    ),
    loss(
        "BarlowTwinsLoss",
        "test_losses_barlow.py",
        "divisor of the correlation",
        "redundancy/_correlation.py",
        "(lambda_param / {}) * off_diagonal",
        "num_rows**2",
        "(num_rows - 1) ** 2",
    ),
    loss(
        "BarlowTwinsLoss",
        "test_losses_barlow.py",
        "option dropped on the way",
        "redundancy/_correlation.py",
        "rule = Rule(self.ddof, float(self.eps), {}, unit_variance=True)",
        "self.eps_on",
        '"variance"',
    ),
    loss(
        "TiCoLoss",
        "test_losses_tico.py",
        "state not kept",
        "redundancy/tico.py",
        "        self.C = {}\n",
        "moved_average(self.C, rows.detach(), self.beta, self.gather_distributed)",
        "moved_average(None, rows.detach(), self.beta, self.gather_distributed)",
    ),
    loss(
        "GroCoLoss",
        "test_losses_groco.py",
        "list detached",
        "ordering/groco.py",
        "\n    others = [other.detach() for other in others] if {} else others",
        "stop_grad",
        "True",
    ),
    ranks(
        "rank offset wrong",
        "losses/contrastive/_pairs.py",
        "ids + {}, key_ids",
        "rank() * num_ids",
        "(rank() + 1) % world_size() * num_ids",
    ),
    ranks(
        "ids of all ranks alike",
        "losses/contrastive/_pairs.py",
        "key_ids = ({} + ids).reshape(-1)",
        "starts[:, None]",
        "0 * starts[:, None]",
    ),
    ranks(
        "gradient of other ranks dropped",
        "distributed/gather.py",
        "dsum = {}\n",
        "_scatter_sum(dgathered.float() if half else dgathered, ctx.group)",
        "dgathered.chunk(world_size(ctx.group))[dist.get_rank(ctx.group)].contiguous()",
    ),
    ranks(
        "sum over ranks in half precision",
        "distributed/gather.py",
        "half = {}\n",
        "dgathered.dtype in (torch.float16, torch.bfloat16)",
        "False",
    ),
    ranks(
        "variance between ranks forgotten",
        "distributed/statistics.py",
        "variance = variances.mean(0) + {}  #",
        "between",
        "0 * between",
    ),
    ranks(
        "diagonal's gradient of one rank",
        "distributed/frobenius.py",
        "whole.addcmul_(other.to(whole.dtype), {})",
        "sides * ddiagonal",
        "ddiagonal",
    ),
    Fault(
        "error rule accepts a shift",
        "sslfast/testing.py",
        "bias={},",
        "float(error.sum().abs() / truth.abs().sum().clamp_min(least))",
        "0.0",
        "test_testing.py",
    ),
    Fault(
        "error rule forgets NaN",
        "sslfast/testing.py",
        "if {}:\n        where = tuple(wrong",
        "wrong.any()",
        "False",
        "test_testing.py",
    ),
    Fault(
        "error rule twice as wide",
        "sslfast/_registry.py",
        "    factor: float = {}\n",
        "2.0",
        "20.0",
        "test_testing.py test_registry.py",
    ),
    Fault(
        "a backend falls back silently",
        "sslfast/_backends.py",
        "return {}\n\n\n@contextmanager",
        "_forced",
        '""',
        "test_dispatch.py",
    ),
    Fault(
        "op's fake has another dtype",
        "sslfast/ops/cross_frobenius.py",
        "return Sums(*(arguments.a.new_empty(size, dtype={}) for size in sizes))",
        "wide",
        "arguments.a.dtype",
        "test_ops_registration.py -k cross_frobenius",
    ),
    Fault(
        "stale cache (macros are no part of the key)",
        "sslfast/_nvrtc.py",
        'f"{name}-{arch}-{_key(arch, {})}.cubin"',
        "defines",
        "()",
        "test_cuda_nvrtc.py -k 'kept or macros or changed'",
    ),
    Fault(
        "missing device guard",
        "sslfast/triton/_launch.py",
        "with {} if first.is_cuda else nullcontext():",
        "torch.cuda.device(first.device)",
        "nullcontext()",
        "test_triton_launch.py",
    ),
)
