"""Exact rankings of pixels: ordered columns of values, and sums over their ranks.

All numbers are sums over pixels, once each knows its rank: the area under the risk-coverage curve
is a sum of errors times a weight of the rank of their uncertainty, Spearman's coefficient one of
products of two ranks. So one sort of each column serves all of them, and sums of parts add up: the
pixels of a data set need never be in memory together (see ``pooled``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torchmetrics import Metric

from dust3r.evaluation.sketch import COVERAGES, ordered_bits, values_of_bits

# Ranks below this have their harmonic numbers in a table, of 8 MB.
_TABLED = 1 << 20

# Of one ranking: its area, the oracle's, the products of both ranks and their squares; then sums
# of errors up to where groups around ``COVERAGES`` begin and end, by uncertainty and by error.
_NUMBERS = 5
SUMS = _NUMBERS + 4 * len(COVERAGES)


@dataclass(frozen=True, eq=False)
class Ordered:
    """A column of float32 values (n,): ``keys`` (n,) int32, sorted, and the ``order`` (n,) that
    sorts it."""

    keys: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Ordered":
        # Integers are sorted by their digits, several times as fast as floats are by comparison.
        keys, order = torch.from_numpy(ordered_bits(values)).sort(stable=True)
        return cls(keys.numpy(), order.numpy())

    @property
    def values(self) -> np.ndarray:
        """The sorted values."""
        return values_of_bits(self.keys)


class Columns:
    """Columns of one image; equal ones, of which methods of one model share many, are one."""

    def __init__(self) -> None:
        self._known: list[tuple[np.ndarray, Ordered]] = []
        self._standings: dict[int, Standing] = {}

    def ordered(self, values: np.ndarray) -> Ordered:
        for known, ordered in self._known:
            if np.array_equal(known, values):
                return ordered
        self._known.append((values, Ordered.of(values)))
        return self._known[-1][1]

    def numbers(self, error: Ordered, uncertainty: Ordered) -> dict[str, float]:
        """``aurc``, ``ause`` and ``rho`` within the image, of columns of ``ordered``."""
        total = len(error.keys)
        standings = []
        for column in (error, uncertainty):
            if id(column) not in self._standings:
                self._standings[id(column)] = Standing.of(column.keys, 0, total)
            standings.append(self._standings[id(column)])
        return _areas(sums_of(error, uncertainty, *standings, total), total)


@dataclass(frozen=True)
class Standing:
    """Where sorted values stand among all of a data set.

    Attributes:
        twice: (n,) twice the rank from 1; equal values share the mean of theirs.
        weights: (n,) of errors in the number of pixels times the area under the curve.
    """

    twice: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, before: int, total: int) -> "Standing":
        """Of sorted keys (n,), n > 0, all that there are from the first to the last of them.

        Args:
            before: number of lower keys in the data set.
            total: number of all keys in the data set.
        """
        after = before + len(keys)
        # The pixel of rank i counts 1 / k in the mean errors of the first k = i, i + 1, ... pixels.
        if after < _TABLED:
            weights = _harmonic_numbers()[after] - _harmonic_numbers()[before:after]
        else:
            ranks = np.arange(before + 1, after + 1, dtype=np.float64)
            weights = np.cumsum((1 / ranks)[::-1])[::-1]
        weights += _harmonic_step(after, total)
        twice = np.arange(2 * before + 2, 2 * after + 1, 2, dtype=np.float64)
        starts, sizes = ties_of(keys)
        if len(starts):
            begins = sizes.cumsum() - sizes
            members = np.repeat(starts - begins, sizes) + np.arange(sizes.sum())
            means = np.add.reduceat(weights[members], begins) / sizes
            weights[members] = np.repeat(means, sizes)
            twice[members] = np.repeat(2 * (before + starts) + sizes + 1, sizes)
        first = int(sizes[0]) if len(starts) and not starts[0] else 1
        weights -= 0.5 / total
        if not before:
            weights[:first] += 0.5 / first
        return cls(twice, weights)

    @classmethod
    def of_equals(cls, count: int, before: int, total: int) -> "Standing":
        """Of ``count`` equal keys, in one number each."""
        after = before + count
        share = before * _harmonic_step(before, after) / count if before else 0.0
        # The trapezoids at both ends are as those of ``of``.
        ends = (0.0 if before else 0.5 / count) - 0.5 / total
        weight = _harmonic_step(after, total) + 1 - share + ends
        return cls(np.array([2.0 * before + count + 1]), np.array([weight]))


def ties_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First places (m,) and sizes (m,) of groups of more than one, in sorted keys (n,)."""
    same = np.flatnonzero(keys[1:] == keys[:-1])
    if not len(same):
        return same, same
    begins = np.concatenate([[0], np.flatnonzero(np.diff(same) != 1) + 1])
    return same[begins], np.diff(begins, append=len(same)) + 1


def around_coverages(
    starts: np.ndarray, sizes: np.ndarray, before: int, count: int, total: int
) -> np.ndarray:
    """Ranks at which the groups of equals that ``COVERAGES`` fall in begin and end, (2, 100).

    Args:
        starts, sizes: of ``ties_of`` these pixels; all others are in groups of their own.
        before: number of pixels before these.
        count: number of these pixels; coverages elsewhere get 0.
        total: number of all pixels.
    """
    found = np.zeros((2, len(COVERAGES)), np.int64)
    ends = np.ceil(COVERAGES * total * (1 - 1e-12)).astype(np.int64)
    inside = np.flatnonzero((ends > before) & (ends <= before + count))
    found[:, inside] = ends[inside] - 1, ends[inside]
    if len(starts):
        place = np.searchsorted(before + starts + sizes, ends[inside])
        place = place.clip(max=len(starts) - 1)
        tied = ends[inside] > before + starts[place]
        tied &= ends[inside] <= before + (starts + sizes)[place]
        place, inside = place[tied], inside[tied]
        found[:, inside] = before + starts[place], before + (starts + sizes)[place]
    return found


def sums_of(
    error: Ordered,
    uncertainty: Ordered,
    of_error: Standing,
    of_uncertainty: Standing,
    total: int,
    groups: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Sums (``SUMS``,) over the pixels of one image, which ``ExactRanking`` adds up.

    Args:
        groups: by uncertainty and by error, of ``around_coverages``; without, no curves.
    """
    sums = np.zeros(SUMS)
    ordered = error.values.astype(np.float64)
    places = np.empty(len(ordered), np.int64)
    places[error.order] = np.arange(len(ordered))
    # From here on pixels are in the order of their uncertainty.
    places = places[uncertainty.order]
    errors = ordered[places]
    second = of_error.twice.astype(np.float64) - (total + 1)
    first = of_uncertainty.twice.astype(np.float64) - (total + 1)
    sums[:_NUMBERS] = (
        errors @ of_uncertainty.weights.astype(np.float64),
        ordered @ of_error.weights.astype(np.float64),
        first @ second[places],
        first @ first,
        second @ second,
    )
    if len(groups):
        parts = (errors, of_uncertainty.twice, groups[0]), (ordered, of_error.twice, groups[1])
        sums[_NUMBERS:] = np.concatenate([_sums_until(*part) for part in parts])
    return sums


class ExactRanking(Metric):
    """AURC, AUSE and rank correlation of pixels, from sums over parts of them."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(SUMS, dtype=torch.float64), dist_reduce_fx="sum")
        # The same on all ranks, or 0.
        shape = 2, 2, len(COVERAGES)
        self.add_state("groups", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="max")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, sums: np.ndarray, groups: Sequence[np.ndarray], total: int) -> None:
        """Add ``sums_of`` some pixels, of ``total`` on all ranks."""
        self.sums += torch.from_numpy(sums).to(self.sums)
        self.groups.copy_(torch.from_numpy(np.stack(list(groups))))
        self.total.fill_(total)

    def compute(self) -> dict[str, object]:
        """See :func:`ranking_of_pixels`."""
        return _ranking_of_sums(self.sums.cpu().numpy(), self.groups.cpu().numpy(), int(self.total))


def ranking_of_pixels(error: np.ndarray, uncertainty: np.ndarray) -> dict[str, object]:
    """As ``sketch.ranking_of_histograms``, of errors and uncertainties (n,); bounds are 0.

    The areas are those of ``dust3r.uncertainty.metrics.aurc`` and ``ause``.
    """
    total = len(error)
    if not total:
        return _ranking_of_sums(np.zeros(SUMS), np.zeros((2, 2, len(COVERAGES))), 0)
    columns = Ordered.of(error), Ordered.of(uncertainty)
    groups = [around_coverages(*ties_of(one.keys), 0, total, total) for one in columns[::-1]]
    standings = [Standing.of(column.keys, 0, total) for column in columns]
    return _ranking_of_sums(sums_of(*columns, *standings, total, groups), groups, total)


def _ranking_of_sums(
    sums: np.ndarray, groups: Sequence[np.ndarray], total: int
) -> dict[str, object]:
    found = {"pixels": total, **_areas(sums, total)}
    found |= dict.fromkeys(("aurc_bound", "ause_bound", "rho_bound"), 0.0 if total else math.nan)
    begins = sums[_NUMBERS:].reshape(2, 2, -1)
    for n, name in enumerate(("risk", "oracle_risk")):
        if not total:
            found[name] = np.full(len(COVERAGES), math.nan)
            continue
        (start, end), (before, after), wanted = groups[n], begins[n], COVERAGES * total
        # Any order within a group of equals: its part up to the coverage has its mean error.
        found[name] = (before + (wanted - start) / (end - start) * (after - before)) / wanted
    return found


def _areas(sums: np.ndarray, total: int) -> dict[str, float]:
    area, oracle, cross, first, second = sums[:_NUMBERS].tolist()
    spread = math.sqrt(first * second)
    return {
        "aurc": area / total if total else math.nan,
        "ause": (area - oracle) / total if total else math.nan,
        "rho": cross / spread if spread else math.nan,
    }


def _sums_until(errors: np.ndarray, twice: np.ndarray, groups: np.ndarray) -> np.ndarray:
    summed = np.concatenate([[0.0], errors.cumsum()])
    # A group that ends at rank r has a mean rank of r + 1/2 at most, one that begins there more.
    return summed[np.searchsorted(twice, 2 * groups, side="right")].ravel()


@cache
def _harmonic_numbers() -> np.ndarray:
    """(``_TABLED``,) from the one of 0 on; ranks within an image need no more."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, _TABLED))])


def _harmonic_step(low: int, high: int) -> float:
    """1 / (low + 1) + ... + 1 / high."""
    ends = torch.tensor([high + 1.0, low + 1.0], dtype=torch.float64)
    return float(torch.digamma(ends).diff().neg())
