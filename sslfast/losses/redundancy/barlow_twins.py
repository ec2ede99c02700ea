r"""Barlow Twins (Zbontar et al. 2021, section 2.2, equations 1 and 2).

For two views of N images, with a and b their embeddings (N, D) standardised column by column and
C = a^T b / N their cross-correlation,

    loss = scale_loss ( sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2 )

The diagonal is D column products; the rest is a `cross_frobenius`, which never holds C where the
batch is below the width.
"""

from __future__ import annotations

from torch import Tensor, nn

from sslfast._core.checks import check_distributed, check_number, check_views
from sslfast._core.correlation.frobenius import Route
from sslfast._registry import Loss, register_loss
from sslfast.losses.redundancy import _correlation_eager as eager
from sslfast.losses.redundancy._correlation import Correlation, EpsOn, Statistics
from sslfast.losses.redundancy._ranks import GradScale


def barlow_twins_loss(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    lambda_param: float = 5e-3,
    scale_loss: float = 1.0,
    ddof: int = 0,
    eps: float = 1e-5,
    eps_on: EpsOn = "variance",
    gather_distributed: bool = False,
    statistics: Statistics = "global",
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    r"""Cross-correlation of two views towards the identity (Zbontar et al. 2021, equation 1).

    Args:
        embeddings0: (N, D) embeddings of the first view, standardised here; N > 1; float16,
            bfloat16, float32 or float64; two dtypes promote to the wider.
        embeddings1: (N, D) embeddings of the second view; row i belongs to row i.
        lambda_param: weight of the off-diagonal terms, at least 0.
        scale_loss: multiplies the loss; above 0.
        ddof: the variance of N rows is divided by N - ddof: 0 (biased) or 1 (unbiased). The
            correlation is always divided by N.
        eps: keeps columns that hardly vary from being blown up; at least 0.
        eps_on: what `eps` is added to, ``"variance"`` or ``"deviation"`` (its square root).
        gather_distributed: the correlation is that of all ranks' rows (the same N on every rank).
            Every rank returns the loss of the global batch.
        statistics: under `gather_distributed`, whose mean and variance standardise the rows: of
            the ``"global"`` batch, or ``"local"``, each rank's own rows, which is another loss.
        grad_scale: under `gather_distributed`, averaging parameter gradients over W ranks, as
            `DistributedDataParallel` does, gives exactly the gradient of the global loss
            (``"exact"``), or 1/W of it (``"reference"``).
        route: ``"gram"`` (N x N) or ``"direct"`` (D x D); ``"auto"`` takes the cheaper. Value and
            gradient are the same.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings). A column that is constant in one
        view correlates with nothing: it adds `scale_loss`, and receives no gradient where `eps`
        is 0.

    Raises:
        TypeError: a view is not a floating tensor, or an option is not a number.
        ValueError: shapes or devices differ, there is one row alone, or an option is out of range.

    Differs from others, each of which is a choice of arguments:

    ================== ====== ==== ==== ========= ================ ========== ==========
    \                  lambda ddof eps  eps_on    scale_loss       statistics grad_scale
    ================== ====== ==== ==== ========= ================ ========== ==========
    lightly            .005   0    1e-5 variance  1                local      exact
    authors' code      .0051  0    1e-5 variance  1                global     reference
    solo-learn         .005   0    1e-5 variance  .025, by dataset local      reference
    stable-pretraining .005   1    1e-5 deviation 1                local      exact
    Mixed Barlow Twins .005   1    0    -         1                local      reference
    ================== ====== ==== ==== ========= ================ ========== ==========

    solo-learn's method has .024 by default, its recipes .1 (CIFAR, ImageNet-100) and .048
    (ImageNet); Mixed Barlow Twins has lambda .0051 on ImageNet. Statistics are global in the
    authors' code because it converts batch norm to the synchronised one. lightly returns half
    precision for half embeddings and sums squares in it.
    """
    how = Correlation(ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route)
    check_views(embeddings0=embeddings0, embeddings1=embeddings1)
    check_weights(lambda_param, scale_loss)
    how.check()
    how.check_batch("embeddings0", embeddings0)
    loss = scale_loss * how.views_to_identity(embeddings0, embeddings1, lambda_param)
    return how.averaged_over_ranks(loss)


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins, a drop-in for `lightly.loss.BarlowTwinsLoss` 1.5 (Zbontar et al. 2021).

    Args:
        lambda_param: weight of the off-diagonal terms, at least 0.
        gather_distributed: the correlation is that of all ranks' rows.
        scale_loss, ddof, eps, eps_on, statistics, grad_scale, route: as in
            `sslfast.functional.barlow_twins_loss`, which says what other libraries use.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from lightly: the loss is float32 for half-precision inputs, and
    ``gather_distributed=True`` standardises by the statistics of the global batch, as the
    authors' code does; ``statistics="local"`` is lightly's.
    """

    def __init__(
        self,
        lambda_param: float = 5e-3,
        gather_distributed: bool = False,
        *,
        scale_loss: float = 1.0,
        ddof: int = 0,
        eps: float = 1e-5,
        eps_on: EpsOn = "variance",
        statistics: Statistics = "global",
        grad_scale: GradScale = "exact",
        route: Route = "auto",
    ) -> None:
        super().__init__()
        check_weights(lambda_param, scale_loss)
        check_distributed(gather_distributed)
        how = Correlation(ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route)
        how.check()
        self.lambda_param = lambda_param
        self.gather_distributed = gather_distributed
        self.scale_loss = scale_loss
        self.correlation = how

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Return the 0-dim loss of two views.

        Args:
            z_a: (N, D) embeddings of the first view, N > 1.
            z_b: (N, D) embeddings of the second view.

        Raises:
            TypeError, ValueError: as `sslfast.functional.barlow_twins_loss`.
        """
        options = self.correlation._replace(gather_distributed=self.gather_distributed)
        return barlow_twins_loss(
            z_a,
            z_b,
            lambda_param=self.lambda_param,
            scale_loss=self.scale_loss,
            **options._asdict(),
        )

    def extra_repr(self) -> str:
        options = {
            "lambda_param": self.lambda_param,
            "scale_loss": self.scale_loss,
            **self.correlation._asdict(),
        }
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def check_weights(lambda_param: float, scale_loss: float) -> None:
    """Raises TypeError or ValueError unless ``lambda_param >= 0`` and ``scale_loss > 0``."""
    check_number("lambda_param", lambda_param, least=0)
    check_number("scale_loss", scale_loss, above=0)


def _barlow_twins_eager(
    embeddings0: Tensor,
    embeddings1: Tensor,
    *,
    lambda_param: float = 5e-3,
    scale_loss: float = 1.0,
    ddof: int = 0,
    eps: float = 1e-5,
    eps_on: EpsOn = "variance",
    gather_distributed: bool = False,
    statistics: Statistics = "global",
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """Equation 1 with its D x D matrix: oracle and baseline. It has one route."""
    how = Correlation(ddof, eps, eps_on, gather_distributed, statistics, grad_scale, route)
    a, b = eager.standardized(how, embeddings0, embeddings1)
    return eager.averaged_over_ranks(scale_loss * eager.to_identity(a, b, lambda_param), how)


SPEC = register_loss(
    Loss(
        name="BarlowTwinsLoss",
        family="redundancy",
        module=BarlowTwinsLoss,
        functional=barlow_twins_loss,
        eager=_barlow_twins_eager,
        primitives=("standardize", "cross_frobenius"),
        paper="Zbontar et al. 2021, arXiv:2103.03230, section 2.2, equation 1",
        samples=(
            eager.correlated_views("two_images", "tiny", 2, 3, eps=0.1),  # 1e-5: no gradient
            eager.correlated_views("one_feature", "tiny", 5, 1),
            eager.correlated_views("ragged", "ragged", 67, 33),
            eager.correlated_views("wide", "ragged", 19, 131, lambda_param=0.0051),
            eager.correlated_views("unbiased", "ragged", 29, 50, ddof=1, eps_on="deviation"),
            eager.correlated_views("no_eps", "ragged", 31, 20, ddof=1, eps=0.0, scale_loss=0.025),
            eager.correlated_views("gathered", "ragged", 20, 11, gather_distributed=True),
            eager.correlated_views("gathered_wide", "ragged", 8, 70, gather_distributed=True),
            eager.correlated_views("batch", "typical", 256, 1024),
            eager.correlated_views("large_batch", "typical", 512, 256),
            eager.correlated_views("same_view", "extreme", 33, 47, noise=0.0),
            eager.correlated_views("large", "extreme", 40, 64, magnitude=100.0),
            eager.correlated_views("small", "extreme", 40, 64, magnitude=1e-2),
            eager.correlated_views("off_centre", "extreme", 40, 24, offset=4.0),
            eager.correlated_views("constant_column", "extreme", 24, 17, constant_column=True),
        ),
    )
)
