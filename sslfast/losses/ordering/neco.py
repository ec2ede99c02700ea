r"""NeCo, patch neighbour consistency (Pariza et al. 2025, section 3).

A patch's list holds its cosines to n reference patches. A relaxed sorting network of the student's
list gives P, of the teacher's list, for the same patch and references, the target Q:

    loss = mean over patches and references i of  - sum_j Q_ij log P_ij

so that the student orders the references as the teacher does. P and Q are never stored: loss and
gradient of a list come from one pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._core.checks import check_device, check_floating, check_number, values_are_read
from sslfast._core.numerics import accumulator, mean
from sslfast._core.sorting.network import SortingRule
from sslfast._registry import Loss, Sample, Size, register_loss
from sslfast.losses._module import Objective
from sslfast.ops.rows.l2_normalize import l2_normalize
from sslfast.ops.sorting.checks import check_rule
from sslfast.ops.sorting.group_mass import sorting_group_mass
from sslfast.ops.sorting.network_reference import negative_log, sort_and_permutation


def neco_loss(
    student: Tensor,
    teacher: Tensor,
    references: Tensor,
    *,
    mask: Tensor | None = None,
    steepness: float = 100.0,
    teacher_steepness: float | None = None,
    network: str = "bitonic",
    relaxation: str = "cauchy",
) -> Tensor:
    """Cross entropy of the student's order of references to the teacher's (Pariza et al. 2025).

    Args:
        student: (B, P, D) features of P patches of B images, normalised here; float16, bfloat16,
            float32 or float64. Cosines are taken in float32 or wider, under autocast too.
        teacher: (B, P, D) the teacher's features of the same patches, aligned with the student's.
            No gradient flows to them.
        references: (B, n, D), n references for the patches of each image, or (n, D) for all:
            patches by the teacher, of the batch or of a queue; 49 in the paper. They get a gradient
            if they ask for one.
        mask: (B, P), bool or numbers at least 0: weights of the patches, foreground for instance.
            ``None``: all count alike.
        steepness: of the student's network, above 0.
        teacher_steepness: of the teacher's; the student's by default.
        network, relaxation: see `sslfast.relaxed_sort`.

    Returns:
        0-dim loss in float32 (float64 where an argument is float64), 0 where the mask is 0
        everywhere. For equal lists it is the entropy of Q, not 0. On several ranks the mean of the
        ranks' losses is that of the global batch.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: shapes or devices differ, a dimension is empty, a feature is not finite (on CUDA
            values are read under ``SSLFAST_CHECK=1`` only), or an option is unknown or out of
            range.

    Differs from others: the authors' code has no floor under log P, where here -log is continued by
    its tangent below 1e-12, so that a share which is 0 in float32 leaves loss and gradient finite.
    Its boxes, queue and random choice of references are the caller's (`NeCoLoss` draws them from
    the batch); of its two similarities this is the cosine, as its configurations have it.
    """
    rule = check_rule(network, relaxation, steepness, 0.25)
    if teacher_steepness is not None:
        check_number("teacher_steepness", teacher_steepness, above=0)
    _check_patches(student, teacher, references, mask)
    with torch.autocast(student.device.type, enabled=False):
        others = _unit(references).mT  # (B, D, n) or (D, n)
        lists = (_unit(student) @ others).flatten(0, 1)  # (B P, n)
        with torch.no_grad():
            targets = (_unit(teacher) @ others).flatten(0, 1)  # (B P, n)
        terms = sorting_group_mass(
            lists,
            (1,) * lists.shape[1],
            cross_entropy=True,
            teacher=targets,
            teacher_steepness=teacher_steepness,
            **rule._asdict(),
        )  # (B P,)
    if mask is None:
        return mean(terms)
    weights = mask.reshape(-1).to(terms.dtype)  # (B P,)
    total = mean(weights)
    return mean(terms * weights) / total.where(total > 0, 1)


class NeCoLoss(Objective):
    """NeCo, patch neighbour consistency (Pariza et al. 2025).

    Args:
        steepness: of the student's network.
        teacher_steepness: of the teacher's; the student's by default.
        network, relaxation: of both.

    Raises:
        TypeError: an argument is not of the right kind.
        ValueError: an option is unknown or out of range.

    Differs from others: see `sslfast.functional.neco_loss`.
    """

    def __init__(
        self,
        steepness: float = 100.0,
        teacher_steepness: float | None = None,
        network: str = "bitonic",
        relaxation: str = "cauchy",
    ) -> None:
        super().__init__()
        check_rule(network, relaxation, steepness, 0.25)
        if teacher_steepness is not None:
            check_number("teacher_steepness", teacher_steepness, above=0)
        self.steepness = steepness
        self.teacher_steepness = teacher_steepness
        self.network = network
        self.relaxation = relaxation

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        references: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the 0-dim loss.

        Args:
            student: (B, P, D) features of the student's patches.
            teacher: (B, P, D) features of the teacher's.
            references: (B, n, D) or (n, D) reference patches, from a queue for instance. ``None``:
                the teacher's patches of the batch, shuffled among all images by torch's default
                generator, n = P, as the authors' code does without a queue.
            mask: (B, P) weights of the patches.

        Raises:
            TypeError, ValueError: as `sslfast.functional.neco_loss`.
        """
        if references is None:
            _check_patches(student, teacher, teacher, mask)
            order = torch.randperm(teacher.shape[0] * teacher.shape[1], device=teacher.device)
            references = teacher.flatten(0, 1)[order].view_as(teacher)
        return neco_loss(
            student,
            teacher,
            references,
            mask=mask,
            steepness=self.steepness,
            teacher_steepness=self.teacher_steepness,
            network=self.network,
            relaxation=self.relaxation,
        )


def _unit(patches: Tensor) -> Tensor:
    return l2_normalize(patches.to(accumulator(patches.dtype)))


def _check_patches(
    student: Tensor, teacher: Tensor, references: Tensor, mask: Tensor | None
) -> None:
    check_floating("student", student)
    if student.ndim != 3 or student.numel() == 0:
        raise ValueError(
            "student must have shape (B, P, D) with no dimension empty, "
            f"got shape {tuple(student.shape)}"
        )
    check_floating("teacher", teacher)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher must have the shape of student {tuple(student.shape)}, "
            f"got {tuple(teacher.shape)}"
        )
    check_floating("references", references)
    images, _, features = student.shape
    own = references.ndim == 3 and references.shape[0] == images
    if not (own or references.ndim == 2) or references.shape[-1] != features:
        raise ValueError(
            f"references must have shape (B, n, D) = ({images}, n, {features}) or (n, D), "
            f"got shape {tuple(references.shape)}"
        )
    if references.numel() == 0:
        raise ValueError(f"references must hold at least one, got shape {tuple(references.shape)}")
    for name, tensor in (("teacher", teacher), ("references", references)):
        check_device(name, tensor, "student", student)
    if mask is not None:
        _check_mask(mask, student)


def _check_mask(mask: Tensor, student: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.is_complex():
        raise TypeError(f"mask must be bool or real, got {mask.dtype}")
    if mask.shape != student.shape[:2]:
        raise ValueError(
            f"mask must have shape (B, P) = {tuple(student.shape[:2])}, "
            f"got shape {tuple(mask.shape)}"
        )
    check_device("mask", mask, "student", student)
    if not torch.compiler.is_compiling() and values_are_read(mask) and not (mask >= 0).all():
        raise ValueError(f"mask must be at least 0 everywhere, got {mask.min().item()}")


def _neco_eager(
    student: Tensor,
    teacher: Tensor,
    references: Tensor,
    *,
    mask: Tensor | None = None,
    steepness: float = 100.0,
    teacher_steepness: float | None = None,
    network: str = "bitonic",
    relaxation: str = "cauchy",
) -> Tensor:
    """As it is usually written: both permutations (B P, n, n) stored. Oracle and baseline."""
    rule = SortingRule(network, relaxation, steepness, 0.25)
    target_rule = rule._replace(steepness=teacher_steepness or steepness)
    others = F.normalize(references, dim=-1).mT  # (B, D, n) or (D, n)
    lists = (F.normalize(student, dim=-1) @ others).flatten(0, 1)  # (B P, n)
    shares = sort_and_permutation(lists, rule)[1]  # (B P, n, n)
    with torch.no_grad():
        targets = (F.normalize(teacher, dim=-1) @ others).flatten(0, 1)  # (B P, n)
        target_shares = sort_and_permutation(targets, target_rule)[1]  # (B P, n, n)
    terms = (target_shares * negative_log(shares)).sum(2).mean(1)  # (B P,)
    if mask is None:
        return terms.mean()
    weights = mask.flatten().to(terms.dtype)
    return (terms * weights).sum() / weights.sum() if weights.any() else 0 * terms.sum()


def _patches(
    name: str,
    size: Size,
    num_images: int,
    num_patches: int,
    num_references: int,
    dim: int,
    *,
    noise: float = 0.5,
    shared: bool = False,
    masked: bool = False,
    **options: Any,
) -> Sample:
    """Noisy features of random patches by student and teacher, and random references."""

    def make(generator: torch.Generator) -> dict[str, Any]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        content = normal(num_images, num_patches, dim)
        sample: dict[str, Any] = {
            "student": content + noise * normal(num_images, num_patches, dim),
            "teacher": content + noise * normal(num_images, num_patches, dim),
            "references": normal(*(() if shared else (num_images,)), num_references, dim),
        }
        if masked:
            sample["mask"] = torch.rand(num_images, num_patches, generator=generator) < 0.5
        return {**sample, **options}

    return Sample(name, size, make)


SPEC = register_loss(
    Loss(
        name="NeCoLoss",
        family="ordering",
        module=NeCoLoss,
        functional=neco_loss,
        eager=_neco_eager,
        primitives=("l2_normalize", "sorting_group_mass"),
        paper="Pariza et al. 2025, arXiv:2408.11054, section 3",
        samples=(
            _patches("one_image", "tiny", 1, 6, 3, 5, steepness=5.0),
            _patches("two_references", "tiny", 2, 1, 2, 4, steepness=5.0),
            _patches("ragged", "ragged", 3, 7, 11, 19, steepness=10.0),
            _patches(
                "ragged_masked", "ragged", 2, 9, 7, 17, steepness=5.0, shared=True, masked=True
            ),
            _patches(
                "two_steepnesses",
                "ragged",
                2,
                5,
                9,
                13,
                steepness=4.0,
                teacher_steepness=20.0,
                network="odd_even",
                relaxation="reciprocal",
            ),
            _patches("seven_by_seven", "typical", 2, 49, 49, 64),
            _patches("steep", "extreme", 2, 5, 8, 16, steepness=1e3),
            _patches("near_the_teacher", "extreme", 2, 6, 12, 16, noise=0.01),
        ),
        constants=("teacher",),
        amplification=lambda arguments: arguments.get("steepness", 100.0),
    )
)
