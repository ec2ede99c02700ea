r"""The predictor of SIE: a linear map that depends on the transformation (Garrido et al. 2023).

A hypernetwork h gives every sample n, from the parameters z_n of the transformation between its
two views, the matrix W_n of a map y_n = W_n x_n. Its last layer is linear, with one matrix A_k for
every one of its K inputs, so the matrices need not exist:

    W_n = sum_k h(z_n)_k A_k        y_n = sum_k A_k (h(z_n)_k x_n) = A (x_n (x) h(z_n))

is one product of the (N, D K) outer products with A (D, D K). Operations are those of forming
the matrices; memory is N D K instead of N D^2 (a factor of D / K, 128 for 512 features and a
quaternion).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.checks import check_choice, check_device, check_rows

HYPERNETWORKS = ("linear", "deep")


class GeneratedLinear(nn.Module):
    """y_n = W(z_n) x_n + b(z_n), the matrix of every row a linear function of its parameters.

    Args:
        in_features: of x, I.
        out_features: of y, O.
        num_parameters: of z, K.
        bias: generate b as well; else it is 0.
        constant: W and b have a part that does not depend on z.

    Initialised as `torch.nn.Linear` from K to the entries of W and b, uniform within
    1 / sqrt(K): for unit parameters the entries of W have variance 1 / (3 K).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_parameters: int,
        bias: bool = False,
        constant: bool = False,
    ) -> None:
        super().__init__()
        self.to_weight = nn.Linear(num_parameters, out_features * in_features, bias=constant)
        self.to_bias = nn.Linear(num_parameters, out_features, bias=constant) if bias else None
        self.out_features = out_features

    def forward(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """(N, O) from rows (N, I) and parameters (N, K)."""
        outer = (rows.unsqueeze(2) * parameters.unsqueeze(1)).flatten(1)  # (N, I K)
        mapped = F.linear(outer, self.to_weight.weight.view(self.out_features, -1))  # (N, O)
        if self.to_weight.bias is not None:
            mapped = mapped + F.linear(rows, self.to_weight.bias.view(self.out_features, -1))
        return mapped if self.to_bias is None else mapped + self.to_bias(parameters)


class HypernetworkPredictor(nn.Module):
    """Predicts the equivariant part of one view from that of the other (Garrido et al. 2023).

    Args:
        num_features: D of the equivariant part.
        num_parameters: K of the transformation; 4 for a rotation as a quaternion.
        hidden_features: widths of the layers between; none, and the map is linear in the rows.
        activation: ReLU between the layers.
        hypernetwork: ``"linear"``, or ``"deep"`` for two layers of K with ReLU before.
        bias: the layers of the predictor have biases, generated like their matrices.
        hypernetwork_bias: the layers of the hypernetwork have biases: a part of the predictor
            that does not depend on the transformation.

    Raises:
        ValueError: a width is below 1, or there is no such hypernetwork.

    Differs from the authors' code: the same function and initialisation, the matrices of the
    samples (N D^2 numbers) never formed; every layer has parameters of its own instead of a
    range of one vector, and one row keeps its batch dimension.
    """

    def __init__(
        self,
        num_features: int,
        num_parameters: int = 4,
        hidden_features: Sequence[int] = (),
        *,
        activation: bool = False,
        hypernetwork: str = "linear",
        bias: bool = False,
        hypernetwork_bias: bool = False,
    ) -> None:
        super().__init__()
        widths = (num_features, *hidden_features, num_features)
        if min(widths) < 1 or num_parameters < 1:
            raise ValueError(
                "num_features, num_parameters and hidden_features must be at least 1, got "
                f"{num_features}, {num_parameters} and {tuple(hidden_features)}"
            )
        check_choice("hypernetwork", hypernetwork, HYPERNETWORKS)
        self.num_features, self.num_parameters = num_features, num_parameters
        self.activation = activation
        self.trunk = nn.Sequential()
        for _ in range(2 if hypernetwork == "deep" else 0):
            self.trunk.append(nn.Linear(num_parameters, num_parameters, bias=hypernetwork_bias))
            self.trunk.append(nn.ReLU())
        self.layers = nn.ModuleList(
            GeneratedLinear(*shape, num_parameters, bias=bias, constant=hypernetwork_bias)
            for shape in pairwise(widths)
        )

    def forward(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Return the (N, D) predictions.

        Args:
            rows: (N, D) equivariant parts of the first view.
            parameters: (N, K) of the transformation that leads to the second view.

        Raises:
            TypeError: an argument is not a floating tensor.
            ValueError: a shape does not match, or devices differ.
        """
        for name, matrix, width in (
            ("rows", rows, self.num_features),
            ("parameters", parameters, self.num_parameters),
        ):
            check_rows(name, matrix, f"(N, {width})")
            if matrix.shape != (len(rows), width):
                raise ValueError(
                    f"{name} must have shape ({len(rows)}, {width}), got {tuple(matrix.shape)}"
                )
        check_device("parameters", parameters, "rows", rows)
        features = self.trunk(parameters)  # (N, K)
        for index, layer in enumerate(self.layers):
            rows = layer(torch.relu(rows) if index and self.activation else rows, features)
        return rows
