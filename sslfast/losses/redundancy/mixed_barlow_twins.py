r"""Mixed Barlow Twins (Bandara, De Melo & Patel 2023, section 3).

Beside two views of N images it embeds their mixture, x_m = lam x_0 + (1 - lam) x_1[p] with a
permutation p. For rows standardised column by column, a and b of the views and m of the mixture,
C(y, z) = y^T z / N, the mixture should correlate with each view as the mixture of embeddings does:

    loss = L_BT(a, b) + mixup_scale lambda (|C(m, a) - G_a|_F^2 + |C(m, b) - G_b|_F^2)
    G_z = lam C(a, z) + (1 - lam) C(b[p], z)

Everything is linear in the left rows. With the residual r = m - lam a - (1 - lam) b[p] the two
differences are C(r, a) and C(r, b), the left and right half of C(r, [a b]): one `cross_frobenius`
in place of five D x D matrices.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sslfast._core.checks import (
    check_choice,
    check_device,
    check_distributed,
    check_ids,
    check_number,
    check_scalar,
    check_views,
)
from sslfast._core.correlation.frobenius import Route
from sslfast._core.numerics import accumulator
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, rank
from sslfast.losses.redundancy import _correlation_eager as eager
from sslfast.losses.redundancy._correlation import Correlation, EpsOn, Statistics
from sslfast.losses.redundancy._ranks import GradScale

SecondTarget = Literal["mixture", "own_view"]
SECOND_TARGETS = ("mixture", "own_view")


def mixed_barlow_twins_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    embeddings_mixed: Tensor,
    *,
    lam: float | Tensor,
    permutation: Tensor | None = None,
    lambda_param: float = 5e-3,
    mixup_scale: float = 5.0,
    second_target: SecondTarget = "mixture",
    ddof: int = 1,
    eps: float = 0.0,
    eps_on: EpsOn = "variance",
    gather_distributed: bool = False,
    statistics: Statistics = "global",
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    r"""Barlow Twins regularised by mixed images (Bandara et al. 2023, section 3).

    Args:
        embeddings0: (N, D) embeddings of the first view, standardised here; N > 1; float16,
            bfloat16, float32 or float64; different dtypes promote to the widest.
        embeddings1: (N, D) embeddings of the second view; row i belongs to row i.
        embeddings_mixed: (N, D) embeddings of ``lam images0 + (1 - lam) images1[permutation]``,
            see `sslfast.functional.mixup`.
        lam: share of the first view in the mixture, from 0 to 1; a number or a tensor with one
            element, which gets no gradient. Ranks may have drawn different ones.
        permutation: (N,) integers, the row of `embeddings1` that each was mixed with, among this
            rank's own rows. ``None``: each with the other view of its own image.
        lambda_param: weight of the off-diagonal terms and of the regularisation, at least 0.
        mixup_scale: weight of the regularisation beside `lambda_param`, at least 0.
        second_target: what the mixture should correlate with the second view like: the
            ``"mixture"`` of embeddings, as with the first; or ``"own_view"``, a mixture of the
            second view with itself, lam b + (1 - lam) b[permutation].
        ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route: see
            `sslfast.functional.barlow_twins_loss`.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings). The targets receive gradients
        like everything else. A constant column correlates with nothing.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: shapes or devices differ, there is one row alone, `permutation` is none, or an
            option is out of range.

    Differs from others: the paper and the authors' ImageNet script have a factor of 1/2, which is
    ``mixup_scale=0.5`` times their weight (1 on ImageNet, raised to it over ten epochs); their
    script for small images has 5 and no factor, the default here. On ImageNet they take
    ``second_target="own_view"``, lambda .0051, and on several GPUs
    ``statistics="local", grad_scale="reference"``. A constant column is NaN there.
    """
    how = Correlation(ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route)
    check_views(embeddings0=embeddings0, embeddings1=embeddings1, embeddings_mixed=embeddings_mixed)
    _check_options(lambda_param, mixup_scale, second_target)
    how.check()
    how.check_batch("embeddings0", embeddings0)
    _check_mixture(embeddings0, lam, permutation)
    a, b, mixed = how.standardize(embeddings0, embeddings1, embeddings_mixed)  # (N, D) each
    residual = _residual(mixed, a, b, lam, permutation)  # (N, D)
    if second_target == "mixture":
        squares = how.squares(residual, torch.cat((a, b), dim=1))
    else:
        # A view of its own: a graph compiler tells the arguments apart by identity.
        own_residual = _residual(mixed, b.view_as(b), b, lam, permutation)  # (N, D)
        squares = how.squares(residual, a) + how.squares(own_residual, b)
    loss = how.to_identity(a, b, lambda_param) + mixup_scale * lambda_param * squares
    return how.averaged_over_ranks(loss)


class MixedBarlowTwinsLoss(nn.Module):
    """Barlow Twins regularised by mixed images (Bandara et al. 2023, section 3).

    Args:
        lambda_param: weight of the off-diagonal terms and of the regularisation, at least 0.
        mixup_scale: weight of the regularisation beside `lambda_param`, at least 0; may be set
            again at any time, e.g. for a warm-up.
        gather_distributed: the correlations are those of all ranks' rows.
        second_target, ddof, eps, eps_on, statistics, grad_scale, route: as in
            `sslfast.functional.mixed_barlow_twins_loss`.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from others: lightly has no such class; see
    `sslfast.functional.mixed_barlow_twins_loss` for the authors' two scripts.
    """

    def __init__(
        self,
        lambda_param: float = 5e-3,
        mixup_scale: float = 5.0,
        gather_distributed: bool = False,
        *,
        second_target: SecondTarget = "mixture",
        ddof: int = 1,
        eps: float = 0.0,
        eps_on: EpsOn = "variance",
        statistics: Statistics = "global",
        grad_scale: GradScale = "exact",
        route: Route = "auto",
    ) -> None:
        super().__init__()
        _check_options(lambda_param, mixup_scale, second_target)
        check_distributed(gather_distributed)
        how = Correlation(ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route)
        how.check()
        self.lambda_param = lambda_param
        self.mixup_scale = mixup_scale
        self.gather_distributed = gather_distributed
        self.second_target: SecondTarget = second_target
        self.correlation = how

    def forward(
        self,
        z_a: Tensor,
        z_b: Tensor,
        z_mixed: Tensor,
        lam: float | Tensor,
        permutation: Tensor | None = None,
    ) -> Tensor:
        """Return the 0-dim loss.

        Args:
            z_a: (N, D) embeddings of the first view, N > 1.
            z_b: (N, D) embeddings of the second view.
            z_mixed: (N, D) embeddings of what `sslfast.functional.mixup` made of both.
            lam: what it returned.
            permutation: what it returned.

        Raises:
            TypeError, ValueError: as `sslfast.functional.mixed_barlow_twins_loss`.
        """
        options = self.correlation._replace(gather_distributed=self.gather_distributed)
        return mixed_barlow_twins_loss(
            z_a,
            z_b,
            z_mixed,
            lam=lam,
            permutation=permutation,
            lambda_param=self.lambda_param,
            mixup_scale=self.mixup_scale,
            second_target=self.second_target,
            **options._asdict(),
        )

    def extra_repr(self) -> str:
        options = {
            "lambda_param": self.lambda_param,
            "mixup_scale": self.mixup_scale,
            "second_target": self.second_target,
            **self.correlation._asdict(),
        }
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _check_options(lambda_param: float, mixup_scale: float, second_target: str) -> None:
    check_number("lambda_param", lambda_param, least=0)
    check_number("mixup_scale", mixup_scale, least=0)
    check_choice("second_target", second_target, SECOND_TARGETS)


def _check_mixture(rows: Tensor, lam: float | Tensor, permutation: Tensor | None) -> None:
    """Values are read on the CPU only, and never while a graph is compiled."""
    check_scalar("lam", lam, rows.device)
    on_host = rows.device.type == "cpu" and not torch.compiler.is_compiling()
    if not isinstance(lam, Tensor) or on_host:
        value = float(lam.detach() if isinstance(lam, Tensor) else lam)
        if not 0 <= value <= 1:
            raise ValueError(f"lam must be from 0 to 1, got {value}")
    if permutation is None:
        return
    check_ids("permutation", permutation, "(N,)", len(rows))
    check_device("permutation", permutation, "embeddings0", rows)
    if on_host and not torch.equal(permutation.long().sort().values, torch.arange(len(rows))):
        raise ValueError(f"permutation must hold each of 0 to {len(rows) - 1} once")


def _residual(
    mixed: Tensor, a: Tensor, b: Tensor, lam: float | Tensor, permutation: Tensor | None
) -> Tensor:
    """(N, D) what the mixture's rows have beyond lam a + (1 - lam) b[permutation]."""
    lam = lam.detach() if isinstance(lam, Tensor) else lam
    residual: Tensor = _Residual.apply(mixed, a, b, lam, permutation)  # type: ignore[no-untyped-call]
    return residual


class _Residual(torch.autograd.Function):
    """One matrix of memory; torch's own operations would keep a product and a gathered copy."""

    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        a: Tensor,
        b: Tensor,
        lam: float | Tensor,
        permutation: Tensor | None,
    ) -> Tensor:
        wide = accumulator(a.dtype)
        share = torch.as_tensor(lam, dtype=wide, device=a.device).reshape(())
        order = None if permutation is None else permutation.long()
        ctx.save_for_backward(share, order)
        partner = b.to(wide, copy=True) if order is None else b[order].to(wide)  # (N, D)
        partner.lerp_(a.to(wide), share)
        return torch.sub(mixed, partner, out=partner).to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dresidual: Tensor) -> tuple[Tensor | None, ...]:
        share, order = ctx.saved_tensors
        back = dresidual
        if order is not None:
            inverse = torch.empty_like(order)
            inverse[order] = torch.arange(len(order), device=order.device)
            back = dresidual[inverse]  # (N, D)
        needs_mixed, needs_a, needs_b = ctx.needs_input_grad[:3]
        da = dresidual * -share if needs_a else None  # (N, D)
        db = back * (share - 1) if needs_b else None  # (N, D)
        return dresidual if needs_mixed else None, da, db, None, None


def _mixed_barlow_twins_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    embeddings_mixed: Tensor,
    *,
    lam: float | Tensor,
    permutation: Tensor | None = None,
    lambda_param: float = 5e-3,
    mixup_scale: float = 5.0,
    second_target: SecondTarget = "mixture",
    ddof: int = 1,
    eps: float = 0.0,
    eps_on: EpsOn = "variance",
    gather_distributed: bool = False,
    statistics: Statistics = "global",
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """With its five D x D matrices, as the authors have it: oracle and baseline. One route."""
    how = Correlation(ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route)
    if permutation is None:
        permutation = torch.arange(len(embeddings0), device=embeddings0.device)
    share = embeddings0.new_zeros(len(embeddings0), 1) + lam  # (N, 1)
    if gather_distributed:
        share = all_gather_rows(share)
        permutation = all_gather_rows(permutation + rank() * len(embeddings0))
    a, b, m = eager.standardized(how, embeddings0, embeddings1, embeddings_mixed)
    p, rest, num_rows = permutation, 1 - share, len(a)
    first = a if second_target == "mixture" else b
    target0 = ((share * a).T @ a + (rest * b[p]).T @ a) / num_rows  # (D, D)
    target1 = ((share * first).T @ b + (rest * b[p]).T @ b) / num_rows  # (D, D)
    differences = m.T @ a / num_rows - target0, m.T @ b / num_rows - target1  # (D, D) each
    squares = differences[0].square().sum() + differences[1].square().sum()
    loss = eager.to_identity(a, b, lambda_param) + mixup_scale * lambda_param * squares
    return eager.averaged_over_ranks(loss, how)


def _mixed_views(
    name: str,
    size: Size,
    num_images: int,
    dim: int,
    *,
    lam: float,
    noise: float = 0.5,
    shuffled: bool = True,
    **options: Any,
) -> Sample:
    """Two views, and a third that is near a mixture of both."""
    views = eager.correlated_views(name, size, num_images, dim, num_views=3, noise=noise)

    def make(generator: torch.Generator) -> dict[str, Any]:
        first, second, third = views.make(generator).values()
        sample = {"embeddings0": first, "embeddings1": second, "lam": lam, **options}
        partner = second
        if shuffled:
            sample["permutation"] = torch.randperm(num_images, generator=generator)
            partner = second[sample["permutation"]]
        sample["embeddings_mixed"] = lam * first + (1 - lam) * partner + 0.3 * third
        return sample

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="MixedBarlowTwinsLoss",
        family="redundancy",
        module=MixedBarlowTwinsLoss,
        functional=mixed_barlow_twins_loss,
        eager=_mixed_barlow_twins_eager,
        primitives=("standardize", "cross_frobenius"),
        paper="Bandara, De Melo & Patel 2023, arXiv:2312.02151, section 3",
        samples=(
            _mixed_views("two_images", "tiny", 2, 3, lam=0.3, eps=0.1),  # 1e-5: no gradient
            _mixed_views("one_feature", "tiny", 6, 1, lam=0.5),
            _mixed_views("ragged", "ragged", 67, 33, lam=0.7),
            _mixed_views("wide", "ragged", 19, 131, lam=0.25, lambda_param=0.0051, eps=1e-5),
            _mixed_views(
                "own_view", "ragged", 29, 50, lam=0.4, second_target="own_view", mixup_scale=0.5
            ),
            _mixed_views(
                "gathered", "ragged", 20, 11, lam=0.6, shuffled=False, gather_distributed=True
            ),
            _mixed_views("batch", "typical", 256, 512, lam=0.8),
            _mixed_views("first_view_alone", "extreme", 33, 20, lam=1.0),
            _mixed_views("second_view_alone", "extreme", 33, 20, lam=0.0),
            _mixed_views("near_views", "extreme", 40, 47, lam=0.5, noise=0.05),
        ),
    )
)
