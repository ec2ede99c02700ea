"""Arguments of `standardize`: how they are grouped, and what is refused."""

from __future__ import annotations

import os

from torch import Tensor

from sslfast._core.checks import (
    check_choice,
    check_count,
    check_device,
    check_floating,
    check_matrix,
    check_number,
    check_vector,
)

EPS_ON = ("variance", "deviation")


def check_standardize(
    embeddings: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    ddof: int,
    eps: float,
    eps_on: str,
) -> None:
    """Raises TypeError or ValueError that names the argument and what it got."""
    check_matrix("embeddings", embeddings, "(N, D)")
    check_count("ddof", ddof, 0)
    check_number("eps", eps, least=0)
    check_choice("eps_on", eps_on, EPS_ON)
    for name, vector, other_name, other in (
        ("mean", mean, "variance", variance),
        ("variance", variance, "mean", mean),
    ):
        if vector is None and other is not None:
            raise ValueError(f"{name} must be given together with {other_name}, got None")
        if vector is not None:
            check_floating(name, vector)
            check_vector(name, vector, "(D,)", embeddings.shape[1])
            check_device(name, vector, "embeddings", embeddings)
    if mean is None and embeddings.shape[0] <= ddof:
        raise ValueError(
            f"embeddings must have more than ddof = {ddof} rows for statistics of their own, "
            f"got shape {tuple(embeddings.shape)}"
        )


def check_variance(variance: Tensor) -> None:
    """Raises ValueError at a negative value; reads CUDA tensors under ``SSLFAST_CHECK=1`` only.

    Called inside the op, where tensors are real even while a graph is compiled.
    """
    if variance.device.type != "cpu" and os.environ.get("SSLFAST_CHECK") != "1":
        return
    negative = variance < 0
    if negative.any():
        where = int(negative.nonzero()[0, 0])
        raise ValueError(
            f"variance must not be negative, got {variance[where].item()} at index {where}"
        )
