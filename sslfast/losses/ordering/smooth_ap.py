r"""Smooth-AP (Brown et al. 2020, section 4): the smoothed average precision of every row.

For the rows z of B images, s_ik = <z_i, z_k> and the positives P(i) of row i, all rows with its
label and row i itself, with a sigmoid of temperature t in place of the step of a rank,

    AP_i = 1/|P(i)| sum_{j in P(i)}  (1 + sum_{k in P(i), k != j} sg((s_ik - s_ij) / t))
                                   / (1 + sum_{k != j}            sg((s_ik - s_ij) / t))
    loss = 1/B sum_i (1 - AP_i)

A rank is needed for the rows of one label alone: B^2 m sigmoids instead of B^3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import (
    check_count,
    check_device,
    check_distributed,
    check_ids,
    check_number,
    check_rows,
)
from sslfast._core.numerics import accumulator
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import all_gather_rows, rank, world_size
from sslfast.losses._module import Objective
from sslfast.losses.ordering._average_precision import smooth_average_precision
from sslfast.ops.rows.l2_normalize import l2_normalize


def smooth_ap_loss(
    embeddings: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 0.01,
    normalize: bool = True,
    num_ids: int | None = None,
    max_class_size: int | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """1 - smoothed average precision, the mean over rows (Brown et al. 2020, section 4).

    Args:
        embeddings: (B, D) rows; float16, bfloat16, float32 or float64. Similarities are taken in
            float32 or wider: their differences are divided by a small temperature.
        labels: (B,) integers in any order; rows of one label are positives of each other, and
            classes may differ in size. A row whose label no other row has is its own only
            positive: its term, the share of rows that are about as similar to it as it is to
            itself, is next to 0, and it counts in the mean.
        temperature: of the sigmoid, in units of the similarity; at least 1e-8.
        normalize: divide rows by their norms; ``False`` where they are unit rows already.
        num_ids: instead of `labels`: the batch is that many blocks of B / num_ids rows, each of
            one class, as the authors' code has it. Each rank's blocks are classes of their own.
        max_class_size: rows that share a label, at most, in the whole (gathered) batch. It is
            read off the labels where it is not given, which on CUDA waits for the device and
            cannot be captured in a graph. Where it is given, work on CUDA grows with it.
        gather_distributed: the other ranks' rows are ranked, too (the same B on every rank). The
            mean of the ranks' losses is the loss of the global batch, and averaging parameter
            gradients over ranks, as `DistributedDataParallel` does, gives exactly its gradient.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings), at least 0 and below 1.

    Raises:
        TypeError: `embeddings` are not floating, `labels` not integers, or a number is none.
        ValueError: a shape, device or value does not fit, `labels` and `num_ids` are both given
            or both missing, `num_ids` does not divide B, or a class is larger than
            `max_class_size` (on CUDA labels are read under ``SSLFAST_CHECK=1`` only).

    Differs from others: the authors' code and pytorch-metric-learning build B^3 sigmoids and take
    classes of one size alone, in blocks, whatever the order of the labels; the authors' takes rows
    as they are (``normalize=False, num_ids=...``), and cuts exponents at 50, which changes no digit
    of a loss. pytorch-metric-learning 2.9 takes the rows of a class for the number of classes: its
    value is that of ``num_ids=m`` for classes of m rows, and the formula's only where there are m
    classes. In all three a row is its own positive. A second derivative raises.
    """
    check_rows("embeddings", embeddings, "(B, D)")
    check_number("temperature", temperature, least=1e-8)
    _check_counts(num_ids, max_class_size)
    labels = _labels(embeddings, labels, num_ids, gather_distributed)
    if max_class_size is None and num_ids is not None:
        max_class_size = len(embeddings) // num_ids
    rows = embeddings.to(accumulator(embeddings.dtype))  # (B, D)
    rows = l2_normalize(rows) if normalize else rows
    keys, key_labels = None, None
    if gather_distributed and world_size() > 1:
        keys, key_labels = all_gather_rows(rows), all_gather_rows(labels)  # (W B, D), (W B,)
    return smooth_average_precision(
        rows, keys, labels, key_labels, float(temperature), max_class_size
    )


class SmoothAPLoss(Objective):
    """Smooth-AP with the shape of pytorch-metric-learning's `SmoothAPLoss` (Brown et al. 2020).

    Args:
        temperature: of the sigmoid, in units of the similarity (`anneal` in the authors' code).
        normalize: divide rows by their norms, as pytorch-metric-learning does; the authors' code
            expects unit rows.
        num_ids: the batch is that many blocks of rows of one class, and `forward` takes no labels,
            as in the authors' code.
        max_class_size: rows that share a label, at most; see
            `sslfast.functional.smooth_ap_loss` for what it saves.
        gather_distributed: rank the rows of all ranks, see `sslfast.functional.smooth_ap_loss`.

    Raises:
        TypeError: a number is none.
        ValueError: `temperature`, `num_ids` or `max_class_size` is out of range, or
            `gather_distributed` with a torch that has no `torch.distributed`.

    Differs from others: see `sslfast.functional.smooth_ap_loss`.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        normalize: bool = True,
        num_ids: int | None = None,
        max_class_size: int | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, least=1e-8)
        _check_counts(num_ids, max_class_size)
        check_distributed(gather_distributed)
        self.temperature = temperature
        self.normalize = normalize
        self.num_ids = num_ids
        self.max_class_size = max_class_size
        self.gather_distributed = gather_distributed

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the 0-dim loss of embeddings (B, D) with labels (B,); none with `num_ids`.

        Raises:
            TypeError, ValueError: as `sslfast.functional.smooth_ap_loss`.
        """
        return smooth_ap_loss(
            embeddings,
            labels,
            temperature=self.temperature,
            normalize=self.normalize,
            num_ids=self.num_ids,
            max_class_size=self.max_class_size,
            gather_distributed=self.gather_distributed,
        )


def _labels(
    embeddings: Tensor, labels: Tensor | None, num_ids: int | None, gather_distributed: bool
) -> Tensor:
    """(B,) int64 labels: as given, or a number for each block."""
    num_rows = len(embeddings)
    if labels is not None and num_ids is None:
        check_ids("labels", labels, "(B,)", num_rows)
        check_device("labels", labels, "embeddings", embeddings)
        return labels.long()
    if labels is not None or num_ids is None:
        given = "both" if num_ids is not None else "neither"
        raise ValueError(f"labels or num_ids must be given, and not both, got {given}")
    if num_rows % num_ids:
        raise ValueError(f"num_ids must divide the {num_rows} rows, got {num_ids}")
    first = rank() * num_ids if gather_distributed else 0
    index = torch.arange(num_rows, device=embeddings.device)
    return first + index // (num_rows // num_ids)  # (B,)


def _check_counts(num_ids: int | None, max_class_size: int | None) -> None:
    for name, count in (("num_ids", num_ids), ("max_class_size", max_class_size)):
        if count is not None:
            check_count(name, count, 1)


def _smooth_ap_eager(
    embeddings: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 0.01,
    normalize: bool = True,
    num_ids: int | None = None,
    max_class_size: int | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """As it is usually written: B^3 sigmoids. Oracle and baseline."""
    rows = F.normalize(embeddings) if normalize else embeddings  # (B, D)
    if num_ids is not None:
        index = torch.arange(len(rows), device=rows.device)
        labels = index // (len(rows) // num_ids) + (rank() * num_ids if gather_distributed else 0)
    assert labels is not None
    keys = all_gather_rows(rows) if gather_distributed else rows  # (W B, D)
    names = all_gather_rows(labels) if gather_distributed else labels  # (W B,)
    positive = (labels[:, None] == names).to(rows.dtype)  # (B, W B)
    similarity = rows @ keys.T  # (B, W B)
    difference = similarity[:, None] - similarity[..., None]  # (B, j, k): s_ik - s_ij
    before = (difference / temperature).sigmoid()
    before = before * (1 - torch.eye(len(keys), dtype=rows.dtype, device=rows.device))
    ranks = 1 + before.sum(-1)  # (B, j)
    positive_ranks = 1 + (before * positive[:, None]).sum(-1)  # (B, j)
    precision = (positive * positive_ranks / ranks).sum(1) / positive.sum(1)  # (B,)
    return (1 - precision).mean()


def _classes(
    name: str,
    size: Size,
    num_rows: int,
    dim: int,
    num_classes: int,
    *,
    noise: float = 1.0,
    **options: Any,
) -> Sample:
    """Noisy rows of random classes, or of equal blocks of them where `num_ids` is given."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(rows: int) -> Tensor:
            return torch.randn(rows, dim, generator=generator, dtype=torch.float64)

        if "num_ids" in options:
            names = torch.arange(num_rows) // (num_rows // num_classes)
            labels = {}
        else:
            names = torch.randint(num_classes, (num_rows,), generator=generator)
            labels = {"labels": names}
        rows = normal(num_classes)[names] + noise * normal(num_rows)
        rows = rows if options.get("normalize", True) else F.normalize(rows)
        return {"embeddings": rows, **labels, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="SmoothAPLoss",
        family="ordering",
        module=SmoothAPLoss,
        functional=smooth_ap_loss,
        eager=_smooth_ap_eager,
        primitives=("l2_normalize",),
        paper="Brown et al. 2020, arXiv:2007.12163, section 4",
        samples=(
            _classes("one_row", "tiny", 1, 4, 1),
            _classes("one_pair", "tiny", 2, 3, 1, temperature=0.1),
            _classes("three_rows", "tiny", 3, 5, 2, temperature=0.5),
            _classes("ragged", "ragged", 67, 33, 9, temperature=0.05),
            _classes("ragged_blocks", "ragged", 30, 19, 6, num_ids=6, normalize=False),
            _classes("rare_classes", "ragged", 41, 24, 60, temperature=0.1),
            _classes("told_size", "ragged", 23, 17, 4, max_class_size=20, temperature=0.1),
            _classes("gathered", "ragged", 20, 11, 7, temperature=0.1, gather_distributed=True),
            _classes("batch", "typical", 128, 64, 32, noise=2.0),
            _classes("warm", "extreme", 40, 30, 5, temperature=1.0),
            _classes("cold", "extreme", 40, 30, 5, temperature=0.003, noise=2.0),
            _classes("one_class", "extreme", 31, 16, 1, temperature=0.1),
            _classes("tight_classes", "extreme", 33, 24, 5, noise=0.1, temperature=0.2),
        ),
        amplification=lambda arguments: 1 / arguments.get("temperature", 0.01),
    )
)
