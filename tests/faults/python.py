"""Faults in launchers, ops, losses, distributed code and the error rule itself."""

from __future__ import annotations

from pathlib import PurePosixPath

from fault import Fault

NUMBERS = " ".join(
    f"registry/test_{name}.py" for name in ("numbers", "gradients", "layout", "registration")
)
RANKS = " ".join(f"distributed/test_distributed{name}.py" for name in ("", "_redundancy", "_state"))


def op(primitive: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    return Fault(kind, f"sslfast/{file}", where, old, new, f"{NUMBERS} -k '{primitive}'")


def loss(name: str, own: str, kind: str, file: str, where: str, old: str, new: str) -> Fault:
    path = str(PurePosixPath("sslfast/losses") / file).replace("losses/../", "")
    tests = f"registry/test_losses.py {own} -k '{name} or not test_losses.py'"
    return Fault(kind, path, where, old, new, tests)


def ranks(kind: str, file: str, where: str, old: str, new: str) -> Fault:
    return Fault(kind, f"sslfast/{file}", where, old, new, RANKS)


FAULTS = (
    op(
        "similarity_logsumexp",
        "contiguous missing",
        "_core/calls.py",
        "flat.append({})\n        else:",
        "wide.contiguous()",
        "wide",
    ),
    op(
        "l2_normalize",
        "half precision is not widened",
        "_core/numerics.py",
        "return tensor.to({}).contiguous()",
        "accumulator(tensor.dtype)",
        "tensor.dtype",
    ),
    op(
        "standardize",
        "options in the wrong order",
        "cpu/rows/standardize.py",
        "return rule.ddof, rule.eps, {}",
        'rule.eps_on == "deviation", rule.unit_variance',
        'rule.unit_variance, rule.eps_on == "deviation"',
    ),
    op(
        "cross_frobenius",
        "gradient of one side (reference)",
        "ops/correlation/frobenius_reference.py",
        "sides = {}\n",
        "2 if arguments.b is None else 1",
        "1",
    ),
    op(
        "cross_frobenius",
        "diagonal left in (reference)",
        "ops/correlation/frobenius_reference.py",
        "total = total - {}\n",
        "diagonal.square().sum()",
        "0",
    ),
    op(
        "similarity_topk",
        "one side of the symmetric gradient",
        "ops/similarity/topk_gradient.py",
        "return Gradients({}, empty) if keys is None",
        "dqueries + dkeys",
        "dqueries",
    ),
    loss(
        "NTXentLoss",
        "losses/contrastive/test_ntxent.py",
        "temperature inverted",
        "contrastive/ntxent.py",
        "    scale = {}\n    # First",
        "inverse(temperature, rows)",
        "inverse(inverse(temperature, rows), rows)",
    ),
    loss(
        "NTXentLoss",
        "losses/contrastive/test_ntxent.py",
        "one view detached",
        "contrastive/ntxent.py",
        "rows = round_like_tiles(l2_normalize(torch.cat((embeddings0, {}))))",
        "embeddings1",
        "embeddings1.detach()",
    ),
    loss(
        "NTXentLoss",
        "losses/contrastive/test_ntxent.py",
        "unrounded positives beside rounded tiles",
        "contrastive/ntxent.py",
        "rows = {}  # (2N, D)",
        "round_like_tiles(l2_normalize(torch.cat((embeddings0, embeddings1))))",
        "l2_normalize(torch.cat((embeddings0, embeddings1)).float())",
    ),
    loss(
        "NTXentLoss",
        "losses/test_memory_bank.py",
        "bank updated in evaluation",
        "contrastive/ntxent.py",
        "update={})",
        "out0.requires_grad",
        "True",
    ),
    loss(
        "NTXentLoss or DCLLoss or HardNegative",
        "losses/contrastive/test_ntxent.py",
        "sum in half precision (row products)",
        "../_core/numerics.py",
        "return (left.to(dtype) * right.to(dtype)).sum({})",
        "-1",
        "-1, dtype=torch.bfloat16).to(dtype",
    ),
    loss(
        "NTXentLoss",
        "losses/contrastive/test_ntxent.py",
        "mean over the padded length",
        "../_core/numerics.py",
        "return chunks.sum(1).sum() / {}",
        "flat.numel()",
        "chunks.numel()",
    ),
    loss(
        "VICRegLoss",
        "losses/redundancy/test_vicreg.py",
        "weight of another term",
        "redundancy/vicreg.py",
        "loss = lambda_param * similarity\n    loss = loss + {} * (0.5 if",
        "mu_param",
        "nu_param",
    ),
    loss(
        "VICRegLoss",
        "losses/redundancy/test_vicreg.py",
        "option inverted",
        "redundancy/vicreg.py",
        "mu_param * (0.5 if {} else 1.0) * variance\n",
        "halve_variance",
        "not halve_variance",
    ),
    loss(
        "BarlowTwinsLoss",
        "losses/redundancy/test_barlow_twins.py",
        "divisor of the correlation",
        "redundancy/_correlation.py",
        "(lambda_param / {}) * off_diagonal",
        "num_rows**2",
        "(num_rows - 1) ** 2",
    ),
    loss(
        "BarlowTwinsLoss",
        "losses/redundancy/test_barlow_twins.py",
        "option dropped on the way",
        "redundancy/_correlation.py",
        "rule = Scaling(self.ddof, float(self.eps), {}, unit_variance=True)",
        "self.eps_on",
        '"variance"',
    ),
    loss(
        "TiCoLoss",
        "losses/redundancy/test_tico.py",
        "state not kept",
        "redundancy/tico.py",
        "        self.C = {}\n",
        "moved_average(self.C, rows.detach(), self.beta, self.gather_distributed)",
        "moved_average(None, rows.detach(), self.beta, self.gather_distributed)",
    ),
    loss(
        "GroCoLoss",
        "losses/ordering/test_groco.py",
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
        "registry/test_testing.py",
    ),
    Fault(
        "error rule forgets NaN",
        "sslfast/testing.py",
        "if {}:\n        where = tuple(wrong",
        "wrong.any()",
        "False",
        "registry/test_testing.py",
    ),
    Fault(
        "error rule twice as wide",
        "sslfast/_registry.py",
        "    factor: float = {}\n",
        "2.0",
        "20.0",
        "registry/test_testing.py registry/test_registry.py",
    ),
    Fault(
        "a backend falls back silently",
        "sslfast/_backends.py",
        "return {}\n\n\n@contextmanager",
        "_forced",
        '""',
        "backends/test_dispatch.py",
    ),
    Fault(
        "op's fake has another dtype",
        "sslfast/ops/correlation/frobenius.py",
        "return Sums(*(arguments.a.new_empty(size, dtype={}) for size in sizes))",
        "wide",
        "arguments.a.dtype",
        "registry/test_registration.py -k cross_frobenius",
    ),
    Fault(
        "stale cache (macros are no part of the key)",
        "sslfast/_nvrtc.py",
        'f"{name}-{arch}-{_key(arch, {})}.cubin"',
        "defines",
        "()",
        "backends/cuda/test_cuda_nvrtc.py -k 'kept or macros or changed'",
    ),
    Fault(
        "missing device guard",
        "sslfast/triton/_launch.py",
        "with {} if first.is_cuda else nullcontext():",
        "torch.cuda.device(first.device)",
        "nullcontext()",
        "backends/triton/test_triton_launch.py",
    ),
)
