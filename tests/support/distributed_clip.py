"""`CLIPLoss` on several processes: every way of gathering, beside open_clip where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast.distributed import rank, world_size
from sslfast.losses import CLIPLoss

SHARE = 6
SCALE = 5.0
WAYS = tuple(product((False, True), repeat=2))  # local_loss, gather_with_grad
COMPILED_WAYS = WAYS[0], WAYS[2]  # between them every collective there is


def open_clip_loss() -> Callable[..., Any] | None:
    """open_clip's class from its file alone, None where it is not installed."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss


def towers(ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows (W SHARE, D) of images and texts of the whole batch, and the scale."""
    generator = torch.Generator().manual_seed(4)
    content, *noise = torch.randn(3, ranks * SHARE, 7, generator=generator, dtype=torch.float64)
    images, texts = (F.normalize(content + part).requires_grad_() for part in noise)
    return images, texts, torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)


def own_leaves() -> tuple[Tensor, Tensor, Tensor]:
    images, texts, scale = towers(world_size())
    own = slice(rank() * SHARE, (rank() + 1) * SHARE)
    return *(rows.detach()[own].clone().requires_grad_() for rows in (images, texts)), scale


def value_and_gradients(loss: Callable[..., Any]) -> list[Tensor]:
    leaves = own_leaves()
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def run() -> dict[str, list[Tensor]]:
    """Value and gradients of images, texts and scale on this rank, by name of the case."""
    results = {}
    place = {"rank": rank(), "world_size": world_size()}
    theirs = open_clip_loss()
    for way in WAYS:
        results[f"{way}"] = value_and_gradients(CLIPLoss(*way))
        results[f"{way} told"] = value_and_gradients(CLIPLoss(*way, **place))
        if theirs is not None:
            results[f"{way} open_clip"] = value_and_gradients(theirs(*way, **place))
    for way in COMPILED_WAYS:
        compiled = torch.compile(CLIPLoss(*way), fullgraph=True, backend="aot_eager")
        results[f"{way} compiled"] = value_and_gradients(compiled)
    results["alone"] = value_and_gradients(CLIPLoss(world_size=1))
    return results


def messages() -> list[str]:
    """What a rank is told that was given another's place."""
    found = []
    wrong_rank = (rank() + 1) % world_size()
    for place in ({"rank": wrong_rank}, {"rank": 0, "world_size": world_size() + 1}):
        try:
            CLIPLoss(**place)(*own_leaves())
        except ValueError as error:
            found.append(str(error))
    return found


def expected(way: tuple[bool, bool], ranks: int, index: int) -> list[Tensor]:
    """What rank `index` of so many must find, from the whole batch on one process."""
    local_loss, with_grad = way
    images, texts, scale = towers(ranks)
    rows = slice(index * SHARE, (index + 1) * SHARE)
    if local_loss and not with_grad:
        value = _terms(images, texts.detach(), images.detach(), texts, scale)[rows].mean()
        gradients = torch.autograd.grad(value, (images, texts, scale))
    else:
        terms = _terms(images, texts, images, texts, scale)  # (W SHARE,)
        value = terms[rows].mean() if local_loss else terms.mean()
        gradients = torch.autograd.grad(terms.mean(), (images, texts, scale))
    factor = ranks if with_grad else 1
    return [value.detach(), *(factor * rows_[rows] for rows_ in gradients[:2]), gradients[2]]


def _terms(
    images: Tensor, other_texts: Tensor, other_images: Tensor, texts: Tensor, scale: Tensor
) -> Tensor:
    """(N,) terms of the pairs, both directions."""
    per_image = (scale * images @ other_texts.T).log_softmax(1).diagonal()
    per_text = (scale * texts @ other_images.T).log_softmax(1).diagonal()
    return -(per_image + per_text) / 2
