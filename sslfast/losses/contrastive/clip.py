"""CLIP (Radford et al. 2021, figure 3): every image finds its text, every text its image.

For N images x and texts y, normalised by the caller, with s_ij = logit_scale <x_i, y_j>,

    loss = -1/(2N) sum_i ( log softmax_j(s_ij)[i] + log softmax_j(s_ji)[i] )

Both cross-entropies come from one pass over the similarities. A bias added to every logit cancels
in a softmax: neither the loss nor a gradient sees it, and its own gradient is exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._core.checks import check_scalar, check_views
from sslfast._core.numerics import factor, mean, row_dot, tile_operands
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.distributed import (
    all_gather_rows,
    mean_over_ranks,
    rank,
    scale_gradient,
    world_size,
)
from sslfast.losses.contrastive._rows import paired_loss
from sslfast.ops.similarity.logsumexp import similarity_logsumexp


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """CLIP's symmetric cross-entropy, the N x N logits never stored (Radford et al. 2021).

    Args:
        image_features: (N, D) rows, normalised by the caller; float16, bfloat16, float32 or
            float64; two dtypes promote to the wider.
        text_features: (N, D) rows, normalised by the caller; text i belongs to image i.
        logit_scale: multiplies the similarities (1 / temperature); a one-element tensor may be
            learnable. CLIP passes ``exp`` of its parameter.
        logit_bias: added to every logit; it cancels, see above. A tensor gets the gradient 0.
        gather_distributed: the other ranks' images and texts are negatives too (the same N on
            every rank). Each rank returns the mean over its own pairs; the mean over ranks is the
            loss of the global batch, and averaging parameter gradients over ranks, as
            `DistributedDataParallel` does, gives exactly its gradient. Only texts are gathered.

    Returns:
        0-dim loss in float32 (float64 for float64 features). One pair alone has the loss 0.

    Raises:
        TypeError: an argument is not a floating tensor, or a scalar is not a number.
        ValueError: shapes or devices differ, a matrix is empty, or a scalar has several elements
            or is not finite.

    Differs from others: open_clip keeps half precision, and rounds its logits to it; here sums
    and loss are float32. stable-pretraining divides by its `logit_scale` and normalises inside.
    """
    _check(image_features, text_features, logit_scale, logit_bias)
    images, texts = tile_operands(image_features, text_features)
    scale = factor(logit_scale, images)
    loss = paired_loss(
        images, texts, scale, both_directions=True, gather_distributed=gather_distributed
    )
    return _with_bias(loss, logit_bias)


class CLIPLoss(nn.Module):
    """CLIP's loss, a drop-in for open_clip's `ClipLoss` 3.3 (Radford et al. 2021, figure 3).

    Args:
        local_loss: a rank returns the loss of its own images and texts against those of all
            ranks; ``False``: the loss of the global batch, the same on every rank. It costs no
            more here, since ranks share the work of the global loss.
        gather_with_grad: gradients also flow to the other ranks' features, see below.
        cache_labels: accepted; there are no labels to cache.
        rank: this process's; ``None``: that of `torch.distributed`.
        world_size: number of processes; 1: no features are gathered, even where there are other
            processes; ``None``: that of `torch.distributed`.
        use_horovod: not supported, only ``False``.

    What a rank's gradients are, W ranks averaging them as `DistributedDataParallel` does:

    - gather_with_grad: the averaged gradient is that of the global batch, exactly.
    - neither gather_with_grad nor local_loss (open_clip's default): that of the encoders is 1/W
      of it, as in open_clip; that of `logit_scale` is the whole of it.
    - local_loss without gather_with_grad: features of the other side are constants, so the
      encoders lack the terms in which their rows are negatives, as in open_clip.

    Features' gradients equal open_clip's on every rank. With the global loss, `logit_scale`
    receives a rank's own part, and the average over ranks equals open_clip's gradient.

    Raises:
        ValueError: `use_horovod`, `world_size` below 1, or `rank` outside of it.

    Differs from open_clip: `rank` and `world_size` are taken from `torch.distributed` unless
    given (there 0 and 1); the loss of half-precision features is float32; a loss near 0 keeps
    its digits.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod must be False, got True: torch.distributed gathers")
        if world_size is not None and world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        if rank is not None and not 0 <= rank < (world_size or rank + 1):
            raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the 0-dim loss, or ``{"contrastive_loss": loss}`` with `output_dict`.

        Args:
            image_features: (N, D) rows, normalised by the caller.
            text_features: (N, D) rows, normalised by the caller; text i belongs to image i.
            logit_scale: multiplies the similarities.
            logit_bias: added to every logit, which changes nothing.
            output_dict: return a dictionary.

        Raises:
            TypeError, ValueError: as `sslfast.functional.clip_loss`; or `rank` and `world_size`
                were given and are not those of `torch.distributed`.
        """
        _check(image_features, text_features, logit_scale, logit_bias)
        images, texts = tile_operands(image_features, text_features)
        loss = self._loss(images, texts, factor(logit_scale, images))
        loss = _with_bias(loss, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return (
            f"local_loss={self.local_loss}, gather_with_grad={self.gather_with_grad}, "
            f"rank={self.rank}, world_size={self.world_size}"
        )

    def _loss(self, images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
        gathers = self._gathers()
        if gathers and self.local_loss and not self.gather_with_grad:
            return _against_constants(images, texts, scale)
        if gathers and not self.gather_with_grad:
            images, texts = (scale_gradient(rows, 1 / world_size()) for rows in (images, texts))
        loss = paired_loss(images, texts, scale, both_directions=True, gather_distributed=gathers)
        return loss if self.local_loss or not gathers else mean_over_ranks(loss)

    def _gathers(self) -> bool:
        """Whether there are other ranks to hear from."""
        if self.world_size == 1:
            return False
        for name, given, actual in (
            ("rank", self.rank, rank()),
            ("world_size", self.world_size, world_size()),
        ):
            if given is not None and given != actual:
                raise ValueError(
                    f"{name} must be that of torch.distributed ({actual}), got {given}"
                )
        return world_size() > 1


def _check(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
) -> None:
    check_views(image_features=image_features, text_features=text_features)
    check_scalar("logit_scale", logit_scale, image_features.device)
    if logit_bias is not None:
        check_scalar("logit_bias", logit_bias, image_features.device)


def _with_bias(loss: Tensor, logit_bias: float | Tensor | None) -> Tensor:
    """The loss, in whose graph the bias is: `DistributedDataParallel` waits for its gradient."""
    if not isinstance(logit_bias, Tensor):
        return loss
    return loss + 0 * logit_bias.reshape(()).to(loss.dtype)


def _against_constants(images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
    """Own rows as queries against the keys of all ranks, which get no gradient."""
    query_ids = torch.arange(len(images), device=images.device) + rank() * len(images)
    terms = []
    for queries, keys in ((images, texts.detach()), (texts, images.detach())):
        positive = scale * row_dot(queries, keys)  # (N,)
        all_keys = all_gather_rows(keys)  # (W N, D)
        key_ids = torch.arange(len(all_keys), device=images.device)
        lse = similarity_logsumexp(
            queries, all_keys, scale=scale, query_ids=query_ids, key_ids=key_ids
        )
        terms.append(positive - lse)
    return -mean(F.logsigmoid(torch.stack(terms)))


def _clip_eager(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    gather_distributed: bool = False,
) -> Tensor:
    """Figure 3 as it is usually written: all logits, two cross-entropies. Oracle and baseline."""
    bias = 0 if logit_bias is None else logit_bias
    index = torch.arange(len(image_features), device=image_features.device)
    if not gather_distributed:
        logits = logit_scale * image_features @ text_features.T + bias  # (N, N)
        return (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2
    index = index + rank() * len(image_features)
    all_images, all_texts = all_gather_rows(image_features), all_gather_rows(text_features)
    per_image = logit_scale * image_features @ all_texts.T + bias  # (N, W N)
    per_text = logit_scale * text_features @ all_images.T + bias  # (N, W N)
    return (F.cross_entropy(per_image, index) + F.cross_entropy(per_text, index)) / 2


def _towers(
    name: str,
    size: Size,
    num_pairs: int,
    dim: int,
    *,
    logit_scale: float = 1 / 0.07,
    noise: float = 1.0,
    magnitude: float = 1.0,
    bias: float | None = None,
    gather: bool = False,
) -> Sample:
    """Unit rows of two towers, a pair closer than others, and the learnable scale."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal() -> Tensor:
            return torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64)

        content = normal()
        sample: dict[str, Any] = {
            "image_features": magnitude * F.normalize(content + noise * normal()),
            "text_features": magnitude * F.normalize(content + noise * normal()),
            "logit_scale": torch.tensor(logit_scale, dtype=torch.float64),
        }
        if bias is not None:
            sample["logit_bias"] = torch.tensor(bias, dtype=torch.float64)
        if gather:
            sample["gather_distributed"] = True
        return sample

    return Sample(name, size, make)


def _largest_logit(arguments: Mapping[str, Any]) -> float:
    """Of rows as they are."""
    rows = arguments["image_features"], arguments["text_features"]
    lengths = [float(matrix.norm(dim=1).max()) for matrix in rows]
    return abs(float(arguments["logit_scale"])) * math.prod(lengths)


SPEC = register_loss(
    Loss(
        name="CLIPLoss",
        family="contrastive",
        module=CLIPLoss,
        functional=clip_loss,
        eager=_clip_eager,
        primitives=("similarity_logsumexp",),
        paper="Radford et al. 2021, arXiv:2103.00020, figure 3",
        samples=(
            _towers("one_pair", "tiny", 1, 6),
            _towers("one_feature", "tiny", 3, 1, logit_scale=1.0),
            _towers("two_pairs", "tiny", 2, 4, logit_scale=2.0),
            _towers("ragged", "ragged", 67, 33),
            _towers("ragged_bias", "ragged", 29, 77, bias=-10.0),
            _towers("gathered", "ragged", 20, 11, logit_scale=5.0, gather=True),
            _towers("gathered_few", "ragged", 4, 3, logit_scale=5.0, gather=True),
            _towers("start", "typical", 256, 512),
            _towers("end", "typical", 512, 256, logit_scale=100.0, noise=2.5),
            _towers("wide", "extreme", 19, 2048, logit_scale=1.0),
            _towers("cold", "extreme", 65, 48, logit_scale=100.0, noise=1.5),
            _towers("coldest", "extreme", 33, 70, logit_scale=1000.0),
            _towers("unnormalised", "extreme", 31, 40, logit_scale=1.0, magnitude=8.0),
            _towers("negative_scale", "extreme", 18, 12, logit_scale=-8.0),
        ),
        amplification=_largest_logit,
    )
)
