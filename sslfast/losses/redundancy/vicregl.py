"""VICRegL (Bardes, Ponce & LeCun 2022, section 3): VICReg of images and of places in them.

    loss = alpha global + (1 - alpha) local

The global term is VICReg of pooled embeddings: the mean squared difference over pairs of a large
crop and any other crop, variance and covariance over all crops. The local term takes the feature
maps of the same pairs. A place of one map is matched with its nearest place in the other, once by
features and once by position in the image; the k closest matches of every image make maps
(N, k, C), where each rank among the k has variances and covariances of its own. Their loss L_k is
VICReg with half the weight of the covariance:

    local = mean over pairs (a, b) of the sum over both kinds of (L_20(a, b) + L_4(b, a)) / 2

No covariance is built (see `cross_frobenius`), and no distance is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sslfast._core.correlation.frobenius import Route
from sslfast._registry import Loss, register_loss
from sslfast.losses.redundancy._maps import Crop, Features, check_crops, crops_of, unstack
from sslfast.losses.redundancy._ranks import GradScale, averaged_over_ranks
from sslfast.losses.redundancy._vicregl_eager import sample_crops, vicregl_eager
from sslfast.losses.redundancy._vicregl_terms import (
    MatchOrder,
    Settings,
    global_loss,
    weighted_loss,
)
from sslfast.losses.redundancy._weighted_terms import WeightedTerms


def vicregl_loss(
    global_embeddings: Tensor,
    global_maps: Tensor,
    global_grids: Tensor,
    local_embeddings: Tensor | None = None,
    local_maps: Tensor | None = None,
    local_grids: Tensor | None = None,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    alpha: float = 0.75,
    num_matches: Sequence[int | None] = (20, 4),
    eps: float = 1e-4,
    match_order: MatchOrder = "distance",
    all_l2_matches: bool = False,
    gather_distributed: bool = False,
    grad_scale: GradScale = "exact",
    route: Route = "auto",
) -> Tensor:
    """VICRegL of large crops and, where there are any, small crops (Bardes et al. 2022, section 3).

    Args:
        global_embeddings: (N, V, D) pooled embeddings of V large crops of N > 1 images; float16,
            bfloat16, float32 or float64.
        global_maps: (N, V, H, W, C) features of the large crops.
        global_grids: (N, V, H, W, 2) position of every place in the image, of any numeric dtype.
        local_embeddings, local_maps, local_grids: the same of the small crops, whose number and
            height and width are their own; all three or none.
        lambda_param: weight of the invariance, the mean squared difference; at least 0.
        mu_param: weight of the variance, the hinge on standard deviations below 1; at least 0.
        nu_param: weight of the covariance, the squares off the diagonal over D; at least 0.
        alpha: weight of the global term, 1 - alpha of the local term; from 0 to 1.
        num_matches: closest matches taken of a map's places in the other's, and of the other's in
            it; None, -1 or more than there are places: all.
        eps: added to the variance before the root; finite and at least 0.
        match_order: the k matches of an image are ordered by ``"distance"`` or by ``"position"``
            in the first map, which decides what each is centred with.
        all_l2_matches: take all matches by features; `num_matches` is then for those by position.
        gather_distributed: statistics of the rows of all ranks (the same N on every rank). Every
            rank returns the loss of the global batch, and averaging parameter gradients over
            ranks, as `DistributedDataParallel` does, gives exactly its gradient.
        grad_scale: ``"exact"``, or ``"reference"`` for 1/W of that gradient on W ranks.
        route: ``"gram"`` (N x N) or ``"direct"`` (D x D); ``"auto"`` takes the cheaper. Value and
            gradient are the same.

    Returns:
        0-dim loss in float32 (float64 for float64 embeddings). Matches are constants for the
        gradient. Of places at equal distance the first is taken.

    Raises:
        TypeError: an argument is not a floating tensor, or a weight is not a number.
        ValueError: shapes or devices differ, there is one image or one crop alone, only some of
            the small crops' tensors are given, or an option is out of range.

    Differs from others: lightly leaves open which of equal distances comes first. The authors'
    code orders matches by position, takes all of them by features by default, and gives the
    variance and covariance of the last pair alone: it overwrites the local term of the pairs
    before. Either halves the covariance of the local term and not that of the global one.
    """
    crops, names = unstack("global", global_embeddings, global_maps, global_grids)
    num_global = len(crops)
    small, small_names = unstack("local", local_embeddings, local_maps, local_grids)
    crops, names = crops + small, names + small_names
    settings = Settings(
        lambda_param=lambda_param,
        mu_param=mu_param,
        nu_param=nu_param,
        alpha=alpha,
        num_matches=num_matches,
        eps=eps,
        match_order=match_order,
        all_l2_matches=all_l2_matches,
        gather_distributed=gather_distributed,
        grad_scale=grad_scale,
        route=route,
    )
    settings.check()
    check_crops(crops, names, num_global, gather_distributed)
    return weighted_loss(crops, num_global, settings)


class VICRegLLoss(WeightedTerms):
    """VICRegL, a drop-in for `lightly.loss.VICRegLLoss` 1.5 (Bardes et al. 2022, section 3).

    Args:
        lambda_param: weight of the invariance.
        mu_param: weight of the variance.
        nu_param: weight of the covariance.
        alpha: weight of the global term, 1 - alpha of the local term; from 0 to 1.
        gather_distributed: statistics of the rows of all ranks, see
            `sslfast.functional.vicregl_loss`.
        eps: added to the variance before the root.
        num_matches: closest matches of one map in the other, and of the other in the one.
        match_order, all_l2_matches, grad_scale, route: see `sslfast.functional.vicregl_loss`.

    Raises:
        TypeError: a weight is not a number.
        ValueError: an option is out of range, or `gather_distributed` with a torch that has no
            `torch.distributed`.

    Differs from lightly: the loss is float32 for half-precision inputs; one large crop alone is an
    error instead of NaN; for the rest see `sslfast.functional.vicregl_loss`.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        alpha: float = 0.75,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        num_matches: Sequence[int | None] = (20, 4),
        *,
        match_order: MatchOrder = "distance",
        all_l2_matches: bool = False,
        grad_scale: GradScale = "exact",
        route: Route = "auto",
    ) -> None:
        super().__init__(
            lambda_param=lambda_param,
            mu_param=mu_param,
            nu_param=nu_param,
            gather_distributed=gather_distributed,
            eps=eps,
            grad_scale=grad_scale,
            route=route,
        )
        self.alpha = alpha
        self.num_matches = num_matches
        self.match_order = match_order
        self.all_l2_matches = all_l2_matches
        self._settings().check()

    def forward(
        self,
        global_view_features: Sequence[Features],
        global_view_grids: Sequence[Tensor],
        local_view_features: Sequence[Features] | None = None,
        local_view_grids: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss, of shape (1,) as lightly does.

        Args:
            global_view_features: of every large crop, its pooled embeddings (N, D) and its
                feature map (N, H, W, C), N > 1.
            global_view_grids: of every large crop, the positions (N, H, W, 2) of its places.
            local_view_features, local_view_grids: the same of the small crops; both or none.

        Raises:
            TypeError, ValueError: as `sslfast.functional.vicregl_loss`; or there are not as many
                grids as features.
        """
        if (local_view_features is None) != (local_view_grids is None):
            raise ValueError(
                "local_view_features and local_view_grids must both be given or both be None, got "
                f"{type(local_view_features).__name__} and {type(local_view_grids).__name__}"
            )
        crops, names = crops_of("global", global_view_features, global_view_grids)
        num_global = len(crops)
        if local_view_features is not None and local_view_grids is not None:
            small, small_names = crops_of("local", local_view_features, local_view_grids)
            crops, names = crops + small, names + small_names
        check_crops(crops, names, num_global, self.gather_distributed)
        return weighted_loss(crops, num_global, self._settings()).reshape(1)

    def _global_loss(
        self,
        global_view_features: Sequence[Features],
        local_view_features: Sequence[Features] | None = None,
    ) -> Tensor:
        """The global term alone, weighted, of shape (1,). Others import it under lightly's name."""
        features = [*global_view_features, *(local_view_features or ())]
        crops = [Crop(embedding, maps, maps) for embedding, maps in features]
        loss = global_loss(crops, len(global_view_features), self._settings())
        return averaged_over_ranks(loss, self.gather_distributed, self.grad_scale).reshape(1)

    def _settings(self) -> Settings:
        return Settings(
            alpha=self.alpha,
            num_matches=self.num_matches,
            match_order=self.match_order,
            all_l2_matches=self.all_l2_matches,
            **self.options(),
        )


SPEC = register_loss(
    Loss(
        name="VICRegLLoss",
        family="redundancy",
        module=VICRegLLoss,
        functional=vicregl_loss,
        eager=vicregl_eager,
        primitives=("cross_frobenius", "standardize"),
        paper="Bardes et al. 2022, arXiv:2210.01571, section 3",
        samples=(
            sample_crops("two_images", "tiny", 2, 3, 2, global_side=1),
            sample_crops("ragged", "ragged", 13, 33, 7, num_local=1, num_matches=(3, 2)),
            sample_crops("global_only", "ragged", 10, 9, 5, match_order="position", alpha=0.3),
            sample_crops(
                "all_matches", "ragged", 7, 5, 6, num_global=1, num_local=2, all_l2_matches=True
            ),
            sample_crops(
                "gathered", "ragged", 8, 5, 3, num_local=1, global_side=2, gather_distributed=True
            ),
            sample_crops("batch", "typical", 32, 256, 64, global_side=5, num_local=1),
            sample_crops("wide", "extreme", 6, 512, 128, global_side=2, num_matches=(None, -1)),
            sample_crops("loud", "extreme", 24, 16, 8, magnitude=30.0, global_side=2),
        ),
    )
)
