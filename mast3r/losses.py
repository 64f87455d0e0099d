"""Training criteria of MASt3R: those of pointmaps, and matching losses on descriptors.

Leroy et al., "Grounding Image Matching in 3D with MASt3R", 2024. Views come with
correspondences (``n_corres=...`` of a data set): ``corres`` (B,N,2), pixel columns and rows (x, y)
on the grid of ``img``, of which number n of view 1 shows the point of number n of view 2 where
``valid_corres`` (B,N); the others are pixels that do not correspond.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r.criterion import Criterion, Details, MissingInput, Views, masked_mean, need
from dust3r.losses import (
    L21,
    ConfLoss,
    Regr3D,
    Regr3D_ScaleInv,
    Regr3D_ScaleShiftInv,
    Regr3D_ShiftInv,
)
from dust3r.utils.spec import LOSSES

__all__ = [
    "L21",
    "APLoss",
    "ConfLoss",
    "ConfMatchingLoss",
    "InfoNCE",
    "MatchingCriterion",
    "MatchingLoss",
    "Regr3D",
    "Regr3D_ScaleInv",
    "Regr3D_ScaleShiftInv",
    "Regr3D_ShiftInv",
]

CONFIDENCES = {"prod": torch.mul, "mean": lambda first, second: (first + second) / 2}


class MatchingCriterion(ABC):
    """What says how badly descriptors match, one value for each correspondence."""

    @abstractmethod
    def __call__(self, first: Tensor, second: Tensor, num_pairs: int) -> Tensor:
        """Losses (B,P) of the first P = ``num_pairs`` rows, of which row p of one matches row p.

        ``first`` and ``second`` are descriptors (B,M,D) of unit norm, M >= P; the rows from P on
        match nothing.
        """


@LOSSES.register()
class InfoNCE(MatchingCriterion):
    """Cross-entropy of the right match among all of a block (MASt3R, section 3.2).

    With s the similarities (dot products over ``temperature``), the probability of match (p, p) is
    taken twice, among the pixels of view 2, exp(s_pp) / sum_j exp(s_pj), and among those of view 1.

    Args:
        temperature: divides dot products; small ones ask for sharp peaks.
        eps: smallest probability that is told apart: losses end at -log(eps), without gradient.
        mode: ``proper``, minus the logarithms of both, each at least ``eps``; ``dual``, minus that
            of their product (at least ``eps``), as in dual-softmax matching; ``all``, minus that of
            the probability among all pairs of pixels.

    Raises:
        ValueError: an argument is not one of these.
    """

    MODES = ("all", "proper", "dual")

    def __init__(self, temperature: float = 0.07, eps: float = 1e-8, mode: str = "all") -> None:
        if mode not in self.MODES:
            raise ValueError(f"mode of InfoNCE is {mode!r}; use one of {', '.join(self.MODES)}")
        if not temperature > 0 or not 0 < eps < 1:
            raise ValueError(
                f"InfoNCE needs temperature > 0 and 0 < eps < 1, and was given {temperature!r} and "
                f"{eps!r}"
            )
        self.temperature = temperature
        self.eps = eps
        self.mode = mode

    def __call__(self, first: Tensor, second: Tensor, num_pairs: int) -> Tensor:
        similarity = first @ second.mT / self.temperature
        right = similarity.diagonal(dim1=1, dim2=2)[:, :num_pairs]
        lowest = math.log(self.eps)
        if self.mode == "all":
            return -(right - similarity.flatten(1).logsumexp(1)[:, None]).clamp(min=lowest)
        forth = right - similarity[:, :num_pairs].logsumexp(2)
        back = right - similarity[:, :, :num_pairs].logsumexp(1)
        if self.mode == "dual":
            return -(forth + back).clamp(min=lowest)
        return -forth.clamp(min=lowest) - back.clamp(min=lowest)

    def __repr__(self) -> str:
        return f"InfoNCE(mode={self.mode!r}, temperature={self.temperature:g})"


@LOSSES.register()
class APLoss(MatchingCriterion):
    """1 - average precision of ranking view 2's pixels for each pixel of view 1.

    With ``nq`` bins, similarities are softly assigned to the nearest two, which can be trained on
    (He et al., "Local Descriptors Optimized for Average Precision", CVPR 2018; Revaud et al., R2D2,
    2019). As there is one right answer, its precision over the bins is the average precision.

    Args:
        nq: number of bins between ``min`` and ``max``, at least 2; or ``'torch'`` for the exact
            one, 1 / rank, which has no gradient and measures only.
        min, max: similarities of the lowest and the highest bin; beyond them all counts as there.
        euc: similarity is 1 - Euclidean distance, not the dot product.

    Raises:
        ValueError: an argument is not one of these.
    """

    def __init__(
        self, nq: int | str = "torch", min: float = 0, max: float = 1, euc: bool = False
    ) -> None:
        if nq != "torch" and (not isinstance(nq, int) or nq < 2):
            raise ValueError(f"nq of APLoss is {nq!r}; give 2 or more bins, or 'torch'")
        if not min < max:
            raise ValueError(f"APLoss needs min < max, and was given {min!r} and {max!r}")
        self.bins = None if nq == "torch" else nq
        self.lowest = min
        self.highest = max
        self.euclidean = bool(euc)

    def __call__(self, first: Tensor, second: Tensor, num_pairs: int) -> Tensor:
        similarity = first[:, :num_pairs] @ second.mT
        if self.euclidean:
            similarity = 1 - (2 - 2 * similarity).clamp(min=1e-6).sqrt()
        right = similarity.diagonal(dim1=1, dim2=2)[..., None]
        if self.bins is None:
            return 1 - 1 / (similarity >= right).sum(2).to(similarity.dtype)
        step = (self.highest - self.lowest) / (self.bins - 1)
        place = ((self.highest - similarity) / step).clamp(0, self.bins - 1)
        right_place = place.diagonal(dim1=1, dim2=2)
        loss = torch.ones_like(right_place)
        found, above = torch.zeros_like(right_place), torch.zeros_like(right_place)
        for number in range(self.bins):
            in_bin = (1 - (place - number).abs()).clamp(min=0).sum(2)
            hit = (1 - (right_place - number).abs()).clamp(min=0)
            found, above = found + hit, above + in_bin
            loss = loss - hit * found / above.clamp(min=1e-12)
        return loss

    def __repr__(self) -> str:
        given = f"nq={self.bins or 'torch'!r}, min={self.lowest:g}, max={self.highest:g}"
        return f"APLoss({given}, euc={self.euclidean})"


@dataclass(frozen=True)
class Matches:
    """What the correspondences of a batch cost.

    Attributes:
        losses: (B,N) of each; of those that are not valid they mean nothing.
        valid: (B,N) bool.
        pixels: the (B,N,2) pixels (x, y) of view 1 and of view 2 they are at.
    """

    losses: Tensor
    valid: Tensor
    pixels: tuple[Tensor, Tensor]

    def mean(self) -> Tensor:
        """Mean over the valid correspondences of the batch; 0 with a graph when there is none."""
        return masked_mean(self.losses, self.valid)


@LOSSES.register()
class MatchingLoss(Criterion):
    """Mean loss of the valid correspondences, the pixels of all others being distractors.

    Args:
        criterion: an ``InfoNCE`` or ``APLoss``.
        negatives_padding: further pixels drawn at random in each image as distractors.
        blocksize: most pixels of an image that are compared with each other at once: those of a
            pair of images are dealt out to as many blocks as that takes.

    Raises:
        ValueError: an argument is out of range. On calling, views lack ``corres`` or
            ``valid_corres``, or predictions ``desc``.
    """

    def __init__(
        self, criterion: MatchingCriterion, negatives_padding: int = 0, blocksize: int = 4096
    ) -> None:
        super().__init__()
        if not isinstance(criterion, MatchingCriterion):
            raise ValueError(
                f"MatchingLoss takes a criterion such as InfoNCE(mode='proper'), not {criterion!r}"
            )
        if negatives_padding < 0 or blocksize < 2:
            raise ValueError(
                f"MatchingLoss needs negatives_padding >= 0 and blocksize >= 2, and was given "
                f"{negatives_padding!r} and {blocksize!r}"
            )
        self.criterion = criterion
        self.negatives_padding = int(negatives_padding)
        self.blocksize = int(blocksize)

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        mean = self.matches(view1, view2, pred1, pred2).mean()
        return mean, {"MatchingLoss": mean.detach()}

    def matches(self, view1: Views, view2: Views, pred1: Views, pred2: Views) -> Matches:
        """Every correspondence and its loss, before any mean."""
        pixels, descriptors = [], []
        for number, view, pred in ((1, view1, pred1), (2, view2, pred2)):
            place = _need_corres(view, "corres", number).long()
            maps = need(pred, "desc", f"prediction {number}").float()
            pixels.append(place)
            descriptors.append(torch.cat([at(maps, place), self._distractors(maps)], dim=1))
        valid = _need_corres(view1, "valid_corres", 1)
        return Matches(self._losses(*descriptors, valid.shape[1]), valid, tuple(pixels))

    def _losses(self, first: Tensor, second: Tensor, num_pairs: int) -> Tensor:
        total = first.shape[1]
        blocks = max(1, math.ceil(total / self.blocksize))
        losses = first.new_zeros(len(first), num_pairs)
        for start in range(blocks):
            # Dealt out like cards, so that every block has its share of pairs and of distractors.
            one, other = first[:, start::blocks], second[:, start::blocks]
            pairs = len(range(start, num_pairs, blocks))
            if pairs:
                losses[:, start:num_pairs:blocks] = self.criterion(one, other, pairs)
        return losses

    def _distractors(self, maps: Tensor) -> Tensor:
        batch, height, width, _ = maps.shape
        where = torch.randint(height * width, (batch, self.negatives_padding), device=maps.device)
        return at(maps, torch.stack([where % width, where // width], dim=-1))

    def __repr__(self) -> str:
        return (
            f"MatchingLoss({self.criterion!r}, negatives_padding={self.negatives_padding}, "
            f"blocksize={self.blocksize})"
        )


@LOSSES.register()
class ConfMatchingLoss(Criterion):
    """Confidence-weighted matching loss, mean of conf * l - alpha * log(conf), as in ConfLoss.

    Args:
        matching_loss: a ``MatchingLoss``, which gives l.
        alpha: weight of the reward for confidence, above 0.
        confmode: how the confidences ``desc_conf`` (B,H,W) of the two pixels make one: ``prod``,
            their product, or ``mean``.
        neg_conf_loss_quantile: pixels that do not correspond count too, with that quantile (between
            0 and 1) of the batch's losses as l, so that their confidence learns to be low; False to
            leave them out.

    Raises:
        ValueError: an argument is not one of these. On calling, what ``MatchingLoss`` raises, or
            predictions lack ``desc_conf``.
    """

    def __init__(
        self,
        matching_loss: MatchingLoss,
        alpha: float = 1,
        confmode: str = "prod",
        neg_conf_loss_quantile: float | bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(matching_loss, MatchingLoss):
            raise ValueError(
                f"ConfMatchingLoss weights a MatchingLoss(InfoNCE()), not {matching_loss!r}; "
                "weight sums from outside: 0.075 * ConfMatchingLoss(...) + ..."
            )
        if not alpha > 0:
            raise ValueError(f"alpha of ConfMatchingLoss must be above 0, and is {alpha!r}")
        if confmode not in CONFIDENCES:
            raise ValueError(f"confmode is {confmode!r}; use one of {', '.join(CONFIDENCES)}")
        if neg_conf_loss_quantile is not False and not 0 < neg_conf_loss_quantile < 1:
            raise ValueError(
                f"neg_conf_loss_quantile is {neg_conf_loss_quantile!r}; give a number between 0 "
                "and 1, or False"
            )
        self.matching_loss = matching_loss
        self.alpha = alpha
        self.confmode = confmode
        self.negative_quantile = neg_conf_loss_quantile

    def compute(
        self, view1: Views, view2: Views, pred1: Views, pred2: Views
    ) -> tuple[Tensor, Details]:
        matches = self.matching_loss.matches(view1, view2, pred1, pred2)
        confidences = [
            at(need(pred, "desc_conf", f"prediction {number}").float()[..., None], place)[..., 0]
            for number, pred, place in zip((1, 2), (pred1, pred2), matches.pixels, strict=True)
        ]
        losses, counted = self._losses(matches)
        conf = torch.where(counted, CONFIDENCES[self.confmode](*confidences), 1.0)
        loss = masked_mean(conf * losses - self.alpha * conf.log(), counted)
        details = {
            "matching_conf_loss": loss.detach(),
            "Conf1_std": confidences[0].detach().std(),
            "Conf2_std": confidences[1].detach().std(),
            "MatchingLoss": matches.mean().detach(),
        }
        return loss, details

    def _losses(self, matches: Matches) -> tuple[Tensor, Tensor]:
        """Losses (B,N) and which of them count, bool."""
        if self.negative_quantile is False:
            return matches.losses, matches.valid
        known = matches.losses.detach().masked_fill(~matches.valid, torch.nan)
        of_negatives = known.flatten().nanquantile(self.negative_quantile).nan_to_num(0.0)
        losses = torch.where(matches.valid, matches.losses, of_negatives)
        return losses, torch.ones_like(matches.valid)

    def __repr__(self) -> str:
        return (
            f"ConfMatchingLoss({self.matching_loss!r}, alpha={self.alpha!r}, "
            f"confmode={self.confmode!r})"
        )


def at(maps: Tensor, pixels: Tensor) -> Tensor:
    """Values (B,N,C) of maps (B,H,W,C) at integer pixels (B,N,2), given as (x, y)."""
    batch, height, width, channels = maps.shape
    index = pixels[..., 1] * width + pixels[..., 0]
    return maps.reshape(batch, height * width, channels).gather(
        1, index[..., None].expand(-1, -1, channels)
    )


def _need_corres(view: Views, key: str, number: int) -> Tensor:
    if key not in view:
        raise MissingInput(
            f"the matching loss needs {key!r} in view {number}, which has {', '.join(view)}: ask "
            "the data set for correspondences, ScanNetpp(..., n_corres=1024, nneg=0.5)"
        )
    return view[key]
