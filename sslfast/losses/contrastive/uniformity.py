"""Uniformity on the unit sphere (Wang & Isola 2020, section 4.1.2).

For N rows x_i,

    loss = log( 1/(N (N - 1)) sum_{i != j} exp(-t |x_i - x_j|^2) )

Pairs i < j have the same mean. With |x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 <x_i, x_j> the sum over
j is a log-sum-exp of similarities at scale 2 t. For unit rows the norms are a constant, and the
symmetric form serves; other rows carry -t |x_j|^2 as a bias of their key. No distance is stored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_distributed, check_number, check_rows
from sslfast._core.numerics import accumulator, mean, round_like_tiles, row_dot
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, world_size
from sslfast.losses._module import Objective
from sslfast.losses.contrastive._pairs import Keys, keys_of_ranks
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.similarity.logsumexp import similarity_logsumexp


def uniformity_loss(
    embeddings: Tensor, *, t: float = 2.0, normalize: bool = True, gather_distributed: bool = False
) -> Tensor:
    """Log of the mean Gaussian potential of all pairs (Wang & Isola 2020, section 4.1.2).

    Args:
        embeddings: (N, D) rows, N > 1; float16, bfloat16, float32 or float64.
        t: inverse variance of the Gaussian; finite and above 0.
        normalize: to unit rows, of which each pair is computed once. Else the rows are taken as
            they are, exactly, at twice the work.
        gather_distributed: pairs of all ranks' rows (the same N on every rank). Every rank
            returns the loss of the global batch, and averaging parameter gradients over ranks,
            as `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss, between about -4t and 0 for unit rows, in float32 (float64 for float64
        embeddings).

    Raises:
        TypeError: `embeddings` is not a floating tensor, or `t` is not a number.
        ValueError: `embeddings` is no matrix or has no pair of rows, or `t` is out of range.

    Differs from others: the authors' `uniform_loss` expects unit rows and gives NaN for a single
    row. Distances of unit rows come from products, exact to a few eps of 1 rather than of the
    distance: the value of a nearly collapsed batch has an absolute error of a few t eps, or of
    eps with ``normalize=False``, which centres the rows first. Under autocast the products are
    taken from rows rounded to the autocast dtype. A mean that underflows keeps its logarithm.
    """
    check_rows("embeddings", embeddings, "(N, D)")
    check_pairs("embeddings", embeddings, gather_distributed)
    check_number("t", t, above=0)
    if normalize:
        return potential_of_unit_rows(l2_normalize(embeddings), t, gather_distributed)
    return _potential(embeddings, t, gather_distributed)


class UniformityLoss(Objective):
    """Log of the mean Gaussian potential of all pairs (Wang & Isola 2020, section 4.1.2).

    Args:
        t: inverse variance of the Gaussian; finite and above 0.
        normalize: to unit rows; else the rows are taken as they are.
        gather_distributed: pairs of all ranks' rows, see `sslfast.functional.uniformity_loss`.

    Raises:
        TypeError: `t` is not a number.
        ValueError: `t` is not finite and above 0, or `gather_distributed` with a torch that has
            no `torch.distributed`.

    Differs from others: see `sslfast.functional.uniformity_loss`.
    """

    def __init__(
        self, t: float = 2.0, normalize: bool = True, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        check_number("t", t, above=0)
        check_distributed(gather_distributed)
        self.t = t
        self.normalize = normalize
        self.gather_distributed = gather_distributed

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the 0-dim loss of rows (N, D), N > 1.

        Raises:
            TypeError, ValueError: as `sslfast.functional.uniformity_loss`.
        """
        return uniformity_loss(
            embeddings,
            t=self.t,
            normalize=self.normalize,
            gather_distributed=self.gather_distributed,
        )


def check_pairs(name: str, rows: Tensor, gather_distributed: bool) -> None:
    """Raises ValueError where no rank has a second row."""
    if len(rows) * (world_size() if gather_distributed else 1) < 2:
        raise ValueError(
            f"{name} must have at least two rows: a mean over pairs needs one pair, "
            f"got shape {tuple(rows.shape)}"
        )


def potential_of_unit_rows(rows: Tensor, t: float, gather_distributed: bool) -> Tensor:
    """Log of the mean of exp(-t |x_i - x_j|^2) = exp(2 t <x_i, x_j> - 2 t)."""
    rows = round_like_tiles(rows)  # (N, D)
    keys, query_ids, key_ids = _others(rows, gather_distributed)
    lse = similarity_logsumexp(rows, keys, scale=2 * t, query_ids=query_ids, key_ids=key_ids)
    num_keys = len(rows) if keys is None else len(keys)
    return _mean_over_pairs(lse.double() - 2 * t, num_keys, gather_distributed).to(lse.dtype)


def _potential(embeddings: Tensor, t: float, gather_distributed: bool) -> Tensor:
    """The same for rows of any length.

    Distances do not change with the origin; around the mean the squares are small beside the
    distances that they are to give. The origin may be a constant: no gradient passes through it.
    """
    gathered, query_ids, key_ids = _others(embeddings, gather_distributed)
    wide = accumulator(embeddings.dtype)
    all_rows = embeddings if gathered is None else gathered
    centre = all_rows.detach().to(wide).mean(0)  # (D,)
    queries, keys = (
        round_like_tiles((rows.to(wide) - centre).to(embeddings.dtype))
        for rows in (embeddings, all_rows)
    )
    lse = similarity_logsumexp(
        queries,
        keys,
        scale=2 * t,
        bias=-t * row_dot(keys, keys),
        query_ids=query_ids,
        key_ids=query_ids if key_ids is None else key_ids,
    )  # (N,)
    potentials = lse.double() - t * row_dot(queries, queries)  # (N,)
    return _mean_over_pairs(potentials, len(keys), gather_distributed).to(lse.dtype)


def _others(rows: Tensor, gather_distributed: bool) -> Keys:
    """All rows, and ids that leave out a row's pair with itself."""
    ids = torch.arange(len(rows), device=rows.device)  # (N,)
    return keys_of_ranks(rows, ids, len(rows), gather_distributed)


def _mean_over_pairs(lse: Tensor, num_keys: int, gather_distributed: bool) -> Tensor:
    """Log of the mean over all pairs from the log-sum-exp (N,) of each row's, in float64."""
    log_mean = _log_mean_exp(lse)
    if gather_distributed and world_size() > 1:
        log_mean = _log_mean_exp(all_gather_rows(log_mean.reshape(1)))
    return log_mean - log_mean.new_full((), num_keys - 1).log()


def _log_mean_exp(values: Tensor) -> Tensor:
    """log(mean(exp(values))), added in one fixed order."""
    largest = values.detach().amax()
    return mean((values - largest).exp()).log() + largest


def _uniformity_eager(
    embeddings: Tensor, *, t: float = 2.0, normalize: bool = True, gather_distributed: bool = False
) -> Tensor:
    """As the authors write it; torch has `pdist` for float32 and wider. Oracle and baseline."""
    rows = F.normalize(embeddings) if normalize else embeddings
    rows = all_gather_rows(rows) if gather_distributed else rows
    return torch.pdist(rows.to(accumulator(rows.dtype))).pow(2).mul(-t).exp().mean().log()


def _rows(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    *,
    spread: float = 1.0,
    offset: float = 0.0,
    **options: float,
) -> Sample:
    """Random rows around a point at `offset` from the origin in every feature."""

    def make(generator: torch.Generator) -> dict[str, float | Tensor]:
        rows = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
        # A unit row of one feature is its sign and has no gradient; signs keep both exact.
        return {"embeddings": offset + spread * rows if dim > 1 else rows.sign(), **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="UniformityLoss",
        family="contrastive",
        module=UniformityLoss,
        functional=uniformity_loss,
        eager=_uniformity_eager,
        primitives=("l2_normalize", "similarity_logsumexp"),
        paper="Wang & Isola 2020, arXiv:2005.10242, section 4.1.2",
        samples=(
            _rows("two_rows", "tiny", 2, 3),
            _rows("one_feature", "tiny", 5, 1),
            _rows("ragged", "ragged", 67, 33),
            _rows("as_given", "ragged", 29, 130, t=0.5, spread=0.1, normalize=False),
            _rows("gathered", "ragged", 20, 11, gather_distributed=True),
            _rows("gathered_as_given", "ragged", 20, 11, normalize=False, gather_distributed=True),
            _rows("batch", "typical", 512, 128),
            _rows("sharp", "extreme", 40, 16, t=8.0),
            _rows("flat", "extreme", 40, 16, t=0.1),
            _rows("wide", "extreme", 24, 2048),
            _rows("far_off", "extreme", 33, 16, spread=0.02, offset=1.0, t=100.0, normalize=False),
        ),
    )
)
