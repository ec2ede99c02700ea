"""The libraries that sslfast is measured against, imported where used.

A peer's ``load`` returns a function of the case's inputs, in their order, that gives the same
scalar, and raises `ImportError` with one readable line where the library is not there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sslfast.bench.place import CPU, CUDA

Objective = Callable[..., Any]

BARE_LIGHTLY_PACKAGES = ("lightly.loss", "lightly.models", "lightly.models.modules")
TORCHSORT = "--no-build-isolation torchsort"  # its extension is built with the torch that is there
INF_CL_HEAD = 256  # features of one of its tiles; D has to be a multiple


@dataclass(frozen=True)
class Peer:
    """Another library's objective, or a formula as others write it.

    Args:
        load: returns the objective, see the module's text.
        package: whose version belongs beside the reading; empty for a formula.
        devices: that it runs on.
        tiled: it never builds the matrix, so it runs where eager does not fit.
        autocast: it runs under the autocast of half precision; False for code with casts of
            its own.
        without: leaves that it gives no gradient for.
    """

    load: Callable[[], Objective]
    package: str = ""
    devices: tuple[str, ...] = (CPU, CUDA)
    tiled: bool = False
    autocast: bool = True
    without: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        try:
            return version(self.package) if self.package else ""
        except PackageNotFoundError:
            return ""


def compiled(objective: Objective) -> Objective:
    """``torch.compile`` of an objective with fixed shapes, its best case."""
    return torch.compile(objective, dynamic=False)


def lightly(module: str, name: str, **options: Any) -> Peer:
    """A loss of lightly, ``lightly.loss.<module>.<name>(**options)``, of two views."""
    return Peer(lambda: lightly_loss(module, name)(**options), package="lightly")


def lightly_tico() -> Peer:
    """Lightly's ``TiCoLoss`` of two views and the covariance before them, which it then keeps."""

    def load() -> Objective:
        made = lightly_loss("tico_loss", "TiCoLoss")()

        def step(embeddings0: Tensor, embeddings1: Tensor, covariance: Tensor) -> Any:
            made.C = covariance
            return made(embeddings0, embeddings1, update_covariance_matrix=False)

        return step

    return Peer(load, package="lightly")


def lightly_wmse(seed: int) -> Peer:
    """Lightly's ``WMSELoss`` of two stacked views, which draws the images' order from `seed`.

    Its check for ``torch.linalg.solve_triangular`` imports that function as a module and finds
    it in no release of torch, so that the class cannot be made: the answer is corrected here. Its
    least size of a batch, twice D, is waived.
    """

    def load() -> Objective:
        made = lightly_loss("wmse_loss", "WMSELoss")
        sys.modules[made.__module__]._SOLVE_TRIANGULAR_AVAILABLE = True  # type: ignore[attr-defined]

        @lru_cache(maxsize=1)
        def of_shape(dim: int, w_size: int, eps: float) -> Any:
            loss = made(embedding_dim=dim, w_size=max(w_size, 2 * dim), eps=eps)
            loss.w_size = w_size
            return loss

        def step(embeddings: Tensor, w_size: int, eps: float, permutations: Tensor) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return of_shape(embeddings.shape[1], w_size, eps)(embeddings)

        return step

    return Peer(load, package="lightly")


def diffsort(network: str, steepness: float, then: Objective | None = None) -> Peer:
    """diffsort's network with Cauchy's relaxation, or what `then` makes of it as its ``sort``.

    A network is made once for a length and a device, as in a model's constructor.
    """

    def load() -> Objective:
        made = _imported("diffsort", "diffsort").DiffSortNet

        @lru_cache
        def of_length(n: int, device: torch.device) -> Any:
            return made(network, n, device=device, steepness=steepness)

        def sort(values: Tensor) -> Any:
            return of_length(values.shape[1], values.device)(values)

        return sort if then is None else partial(then, sort=sort)

    return Peer(load, package="diffsort")


def torchsort(name: str, **options: Any) -> Peer:
    """A function of torchsort, of lists (B, n)."""

    def load() -> Objective:
        function: Objective = getattr(_imported("torchsort", TORCHSORT), name)
        return partial(function, **options)

    return Peer(load, package="torchsort")


def metric_learning_smooth_ap(temperature: float) -> Peer:
    """pytorch-metric-learning's ``SmoothAPLoss`` of (B, D) rows in blocks of one class.

    It counts the classes of its labels and takes that number for the rows of a class, so that
    blocks are read rightly where both are equal. It reads nothing else off its labels: here it is
    told as many as a class has rows.
    """

    def load() -> Objective:
        package = _imported("pytorch_metric_learning", "pytorch-metric-learning")
        losses = importlib.import_module(f"{package.__name__}.losses")
        loss = losses.SmoothAPLoss(temperature=temperature)

        def step(embeddings: Tensor, labels: Tensor) -> Any:
            index = torch.arange(len(labels), device=labels.device)
            class_size = int((labels == labels[0]).sum())
            return loss(embeddings, index % class_size)

        return step

    return Peer(load, package="pytorch-metric-learning", autocast=False)


def inf_cl() -> Peer:
    """Inf-CL's two directions, each a pass of its own over (N, D) queries and keys.

    Its kernels take float32 rows, which it casts to, and multiply them in TF32 whatever the
    setting; D must be a multiple of 256 and offsets are 32 bits wide.
    """
    return Peer(_inf_cl, package="inf-cl", devices=(CUDA,), tiled=True, autocast=False)


def memeff(temperature: float) -> Peer:
    """MemoryEfficientCLIP's loss of normalised (N, D) rows, both directions from one pass.

    Its temperature is a number, so there is no gradient of the scale; D >= 64. ``stable=False``
    is the gradient of the loss: its default multiplies it by sqrt(N temperature).
    """
    return Peer(
        lambda: _memeff(temperature),
        package="memeff",
        devices=(CUDA,),
        tiled=True,
        autocast=False,
        without=("logit_scale",),
    )


def _inf_cl() -> Objective:
    loss = _imported("inf_cl", "inf-cl").cal_flash_loss

    def both(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
        if queries.shape[1] % INF_CL_HEAD:
            raise ValueError(f"Inf-CL needs D in multiples of {INF_CL_HEAD}, not {queries.shape}")
        queries, keys = queries.float(), keys.float()
        return (loss(queries, keys, scale=scale) + loss(keys, queries, scale=scale)).mean() / 2

    return both


def _memeff(temperature: float) -> Objective:
    made = _imported("memeff", "memeff").MemoryEfficientCLIPLoss(
        temperature=temperature, normalized_inputs=True, stable=False
    )
    return lambda queries, keys, scale: made(queries, keys)


def _imported(module: str, package: str) -> ModuleType:
    if importlib.util.find_spec(module) is None:
        name = package.split()[-1]
        raise ImportError(f"{name} is not installed: pip install --no-deps {package}")
    return importlib.import_module(module)


def lightly_loss(module: str, name: str) -> Callable[..., Any]:
    """A loss class of lightly by its module under ``lightly.loss``.

    The module needs torch alone, but importing it runs package files that import every image
    model, hence torchvision. Without torchvision the three packages on the way are entered
    without running those files; the class and its memory bank are lightly's own, unchanged.

    Raises:
        ImportError: lightly is not installed.
    """
    if importlib.util.find_spec("lightly") is None:
        raise ImportError("lightly is not installed: pip install lightly")
    # On import lightly asks its server for a newer version unless told that this was done.
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    path = f"lightly.loss.{module}"
    if importlib.util.find_spec("torchvision") is not None:
        found = importlib.import_module(path)
    else:
        with _without_torchvision():
            found = importlib.import_module(path)
    loss: Callable[..., Any] = getattr(found, name)
    return loss


def lightly_ntxent() -> Callable[..., Any]:
    """Lightly's ``NTXentLoss`` class; see `lightly_loss`."""
    return lightly_loss("ntx_ent_loss", "NTXentLoss")


def lightly_version() -> str | None:
    return lightly("ntx_ent_loss", "NTXentLoss").version or None


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Bare parent packages for lightly, and an empty torchvision, for the time of an import."""
    placeholders = [_bare_package(name) for name in BARE_LIGHTLY_PACKAGES]
    placeholders += [ModuleType("torchvision"), ModuleType("torchvision.ops")]
    # `lightly.models.utils` names this layer at import and uses it in vision transformers only.
    placeholders[-1].StochasticDepth = type("StochasticDepth", (), {})  # type: ignore[attr-defined]
    sys.modules.update({module.__name__: module for module in placeholders})
    try:
        yield
    finally:
        for module in placeholders:
            sys.modules.pop(module.__name__, None)


def _bare_package(name: str) -> ModuleType:
    package = ModuleType(name)
    root = importlib.import_module("lightly").__path__[0]
    package.__path__ = [os.path.join(root, *name.split(".")[1:])]
    return package
