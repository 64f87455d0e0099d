"""Rankings of pixels in bounded memory: histograms over the bits of floating-point numbers.

A float32's leading bits, taken as an integer, grow with its value: they are a histogram's bin that
needs no range chosen in advance and is narrow (0.4% of the value) whatever the unit. Pixels of one
bin are taken as equally uncertain, which is all that is approximate; how much that can matter is
computed from the counts themselves, and given beside each number as its ``bound``.

The rank correlation needs uncertainty and error together, in coarser bins (3%) between 2^-22 and
2^10, values beyond them in the outermost.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 1 << 17
JOINT_SIDE = 1 << 10

_SHIFT, _JOINT_SHIFT = 15, 18
_LOWEST = (127 - 22) << (23 - _JOINT_SHIFT)
COVERAGES = np.linspace(0.01, 1.0, 100)


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 (n,) as int32 (n,) that are ordered as the values are."""
    # Adding 0 makes minus zero plus zero.
    return _swapped((np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.int32))


def values_of_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse of ``ordered_bits``."""
    return _swapped(bits).view(np.float32)


def bins_of(values: np.ndarray) -> np.ndarray:
    """Bins (n,) in [0, ``BINS``) of float32 values (n,), in the order of the values."""
    return (ordered_bits(values) >> _SHIFT) + BINS // 2


def joint_bins_of(values: np.ndarray) -> np.ndarray:
    """Coarse bins (n,) in [0, ``JOINT_SIDE``) of values (n,)."""
    return np.clip((ordered_bits(values) >> _JOINT_SHIFT) - _LOWEST, 0, JOINT_SIDE - 1)


@dataclass(frozen=True)
class Sparse:
    """The occupied bins of some pixels: ``bins`` (m,), ``counts`` (m,), ``sums`` of errors (m,)."""

    bins: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    @classmethod
    def ranking(cls, uncertainty: np.ndarray, error: np.ndarray) -> "Sparse":
        """Of errors (n,), 0 or above, by uncertainties (n,), float32."""
        places = bins_of(uncertainty)
        low = int(places.min(initial=BINS - 1))
        counts = np.bincount(places - low)
        sums = np.bincount(places - low, weights=error)
        bins = np.flatnonzero(counts)
        return cls((bins + low).astype(np.int32), counts[bins].astype(np.int32), sums[bins])

    @classmethod
    def joint(cls, uncertainty: np.ndarray, error: np.ndarray) -> "Sparse":
        """Of both together; ``sums`` is empty."""
        rows, columns = (joint_bins_of(values) for values in (uncertainty, error))
        if not len(rows):
            return cls(*(np.empty(0, np.int32),) * 2, np.empty(0))
        # Counted within the window that is occupied, which is small, rather than sorted.
        top, left = int(rows.min()), int(columns.min())
        width = int(columns.max()) - left + 1
        counts = np.bincount((rows - top) * width + (columns - left))
        places = np.flatnonzero(counts)
        bins = (places // width + top) * JOINT_SIDE + places % width + left
        return cls(bins.astype(np.int32), counts[places].astype(np.int32), np.empty(0))


class RankingSketch(Metric):
    """AURC, AUSE and rank correlation of any number of pixels, in 14 MB.

    States are sums, so that ranks add up.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        for name in ("ranked", "oracle"):
            zero = torch.zeros(BINS, dtype=torch.int64)
            self.add_state(f"{name}_counts", zero, dist_reduce_fx="sum")
            self.add_state(f"{name}_sums", zero.double(), dist_reduce_fx="sum")
        joint = torch.zeros(JOINT_SIDE**2, dtype=torch.int64)
        self.add_state("joint_counts", joint, dist_reduce_fx="sum")

    def update(self, ranked: Sparse, oracle: Sparse, joint: Sparse) -> None:
        """Add the histograms of some pixels: errors by uncertainty, by themselves, and joint."""
        for name, part in (("ranked", ranked), ("oracle", oracle)):
            _add(getattr(self, f"{name}_counts"), part.bins, part.counts)
            _add(getattr(self, f"{name}_sums"), part.bins, part.sums)
        _add(self.joint_counts, joint.bins, joint.counts)

    def update_pixels(self, error: Tensor, uncertainty: Tensor) -> None:
        """Add pixels of one shape; errors count by magnitude."""
        error, uncertainty = (x.detach().float().flatten().cpu().numpy() for x in
                              (error.abs(), uncertainty))  # fmt: skip
        self.update(
            Sparse.ranking(uncertainty, error),
            Sparse.ranking(error, error),
            Sparse.joint(uncertainty, error),
        )

    def compute(self) -> dict[str, object]:
        """See :func:`ranking_of_histograms`."""
        arrays = (
            state.cpu().numpy()
            for state in (self.ranked_counts, self.ranked_sums, self.oracle_counts,
                          self.oracle_sums, self.joint_counts)
        )  # fmt: skip
        return ranking_of_histograms(*arrays)


def ranking_of_histograms(
    counts: np.ndarray,
    sums: np.ndarray,
    oracle_counts: np.ndarray,
    oracle_sums: np.ndarray,
    joint: np.ndarray,
) -> dict[str, object]:
    """Rankings from counts and sums of errors (``BINS``,) by uncertainty and by error.

    Returns:
        ``pixels``; ``aurc``, ``ause`` (unit of the errors) and ``rho``; ``aurc_bound``,
        ``ause_bound`` and ``rho_bound``: how far each is from the exact number at most;
        ``risk``, ``oracle_risk``: mean errors (100,) at ``COVERAGES``. NaN without pixels.
    """
    curve, oracle = Curve.of(counts, sums), Curve.of(oracle_counts, oracle_sums)
    occupied = np.flatnonzero(joint)
    rho, rho_bound = rank_correlation(occupied, joint[occupied])
    # Errors that share a bin differ by no more than its width, 2^-8 of them.
    oracle_bound = min(oracle.bound, 2.0 ** (_SHIFT - 23) * oracle.area)
    return {
        "pixels": int(curve.total),
        "aurc": curve.area,
        "ause": curve.area - oracle.area,
        "rho": rho,
        "aurc_bound": curve.bound,
        "ause_bound": curve.bound + oracle_bound,
        "rho_bound": rho_bound,
        "risk": curve.risk,
        "oracle_risk": oracle.risk,
    }


@dataclass(frozen=True)
class Curve:
    """Mean error of the most certain pixels over their share, from groups of equal certainty."""

    total: int
    area: float
    bound: float
    risk: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, sums: np.ndarray) -> "Curve":
        """Of groups in the order of their uncertainty: sizes and sums of errors, (m,) each."""
        filled = np.flatnonzero(counts)
        counts, sums = counts[filled].astype(np.float64), sums[filled].astype(np.float64)
        if not len(counts):
            return cls(0, math.nan, math.nan, np.full(len(COVERAGES), math.nan))
        after = counts.cumsum()
        before, total = after - counts, after[-1]
        summed = sums.cumsum()
        means = sums / counts
        # The risk after j pixels of a group is (S + j m) / (k + j) = m + (S - k m) / (k + j) with k
        # pixels and a sum of S before it; over j this sums to a difference of harmonic numbers.
        harmonic = torch.digamma(torch.from_numpy(np.stack([after, before]) + 1)).numpy()
        harmonic = harmonic[0] - harmonic[1]
        risks = counts * means + (summed - sums - before * means) * harmonic
        first, last = means[0], summed[-1] / total
        area = risks.sum() / total + (first - last) / (2 * total)
        # In whatever order a group's errors come, their partial sums are within its sum.
        bound = (sums * harmonic).sum() / total
        wanted = COVERAGES * total
        place = np.searchsorted(after, wanted * (1 - 1e-12))
        partial = (summed - sums)[place] + (wanted - before[place]) * means[place]
        return cls(int(total), float(area), float(bound), partial / wanted)


def rank_correlation(bins: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Spearman's coefficient of pixels in joint bins, (m,) and (m,), and how far off it can be."""
    total = counts.sum()
    if not total:
        return math.nan, math.nan
    shares, ranks, ties = counts / total, [], []
    for place in (bins // JOINT_SIDE, bins % JOINT_SIDE):
        share = np.bincount(place, weights=shares, minlength=JOINT_SIDE)
        ranks.append((share.cumsum() - share / 2 - 0.5)[place])
        ties.append(float((share**3).sum()))
    if max(ties) >= 1:
        return math.nan, 1.0
    left = math.sqrt((1 - ties[0]) * (1 - ties[1]))
    rho = float(12 * (shares * ranks[0] * ranks[1]).sum() / left)
    # Ranks within a bin vary about its mean rank with a variance of share^2 / 12. Cauchy-Schwarz
    # bounds what this can add to the covariance, and the variances lack as much as the ties hold.
    first, second = (math.sqrt(tie) for tie in ties)
    return rho, min(2.0, first + second + first * second + abs(rho) * (1 - left))


def _swapped(bits: np.ndarray) -> np.ndarray:
    """Turns the order of the bits of negative numbers, which grow as these fall."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _add(state: Tensor, bins: np.ndarray, values: np.ndarray) -> None:
    index = torch.from_numpy(np.asarray(bins, np.int64)).to(state.device)
    # Bins of a part are distinct, so that nothing is lost by adding in place.
    # A copy, as values may be read-only: torch knows no such arrays.
    state[index] += torch.tensor(values).to(state)
