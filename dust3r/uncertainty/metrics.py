"""Metrics of depth and of its uncertainty, over all pixels of all images, exact, across ranks.

The three that rank pixels (``AUSE``, ``AURC``, ``Spearman``) keep every pixel they see, 8 bytes
each, on the device the values came from, and gather them from all ranks to compute: 1000 images of
512x384 are 1.6 GB. Thin the pixels out by ``mask`` where that is too much. Sorting and sums over
ten million pixels take a few seconds on a CPU.

Errors and uncertainties of one ranking metric may have any shape, as long as it is the same;
uncertainty counts by its order alone (standard deviation, variance, 1 / confidence). A NaN among
the pixels makes a metric NaN; without any pixel it is NaN as well.
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PixelMean(Metric):
    """Mean over all pixels that were added; subclasses state of what."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total += values.double().sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class DepthRMSE(PixelMean):
    """Root mean squared error, in the unit of the errors."""

    def update(self, error: Tensor, mask: Tensor | None = None) -> None:
        """Add errors, signed or not, of any shape, where ``mask`` (bool, same shape) holds."""
        (error,) = _select(mask, error)
        self._add(error.double().square())

    def compute(self) -> Tensor:
        return (self.total / self.count).sqrt().float()


class PredictiveNLL(PixelMean):
    """Mean negative log-likelihood per pixel, in nats."""

    def update(self, nll: Tensor, mask: Tensor | None = None) -> None:
        """Add NLLs of any shape, where ``mask`` (bool, same shape) holds."""
        (nll,) = _select(mask, nll)
        self._add(nll)


class PixelRanking(Metric):
    """Keeps all pixels; subclasses state what is computed from them."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("error", [], dist_reduce_fx="cat")
        self.add_state("uncertainty", [], dist_reduce_fx="cat")

    def update(self, error: Tensor, uncertainty: Tensor, mask: Tensor | None = None) -> None:
        """Add pixels, where ``mask`` (bool, same shape) holds; errors count by magnitude."""
        error, uncertainty = _select(mask, error, uncertainty)
        self.error.append(error.detach().float().abs())
        self.uncertainty.append(uncertainty.detach().float())

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Errors and uncertainties (n,) of all pixels so far."""
        if isinstance(self.error, list) and not self.error:
            return torch.empty(0, device=self.device), torch.empty(0, device=self.device)
        return dim_zero_cat(self.error), dim_zero_cat(self.uncertainty)


class AUSE(PixelRanking):
    """Area under the sparsification error; see :func:`ause`."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return ause(*self.pixels())


class AURC(PixelRanking):
    """Area under the risk-coverage curve; see :func:`aurc`."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return aurc(*self.pixels())


class Spearman(PixelRanking):
    """Rank correlation of error and uncertainty; see :func:`spearman`."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return spearman(*self.pixels())


def ause(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Area between the risk-coverage curves of an uncertainty and of the oracle (scalar).

    The oracle ranks by the error itself. 0 is a perfect ranking; the unit is that of the errors,
    the area is not divided by their mean (Ilg et al., Uncertainty Estimates and Multi-Hypotheses
    Networks for Optical Flow, ECCV 2018, sparsify likewise and normalise).

    Args:
        error: magnitudes, any shape.
        uncertainty: same shape.

    Raises:
        ValueError: shapes differ.
    """
    error, uncertainty = _select(None, error, uncertainty)
    oracle = _risk(error.sort().values.double())
    return (_area(_risk(_errors_by_certainty(error, uncertainty))) - _area(oracle)).float()


def aurc(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Area under the risk-coverage curve (scalar, in the unit of the errors).

    Risk at a coverage k/n is the mean error of the k most certain of n pixels; the area is by
    trapezoids over k = 1..n, the first risk holding below 1/n, so that an error that is the same
    everywhere has itself as area. Pixels of equal uncertainty each take the mean error of their
    group, which is what a random order among them gives on average.

    Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.

    Args:
        error: magnitudes, any shape.
        uncertainty: same shape.

    Raises:
        ValueError: shapes differ.
    """
    return _area(_risk(_errors_by_certainty(error, uncertainty))).float()


def sparsification_curve(
    error: Tensor, uncertainty: Tensor, n_bins: int = 100
) -> tuple[Tensor, Tensor]:
    """Mean error of what remains when the most uncertain fraction of pixels is removed.

    With ``error`` as its own ``uncertainty`` this is the oracle's curve.

    Args:
        error: magnitudes, any shape.
        uncertainty: same shape.
        n_bins: number of points of the curve, at least 1.

    Returns:
        Removed fractions 0, 1/n_bins, ... (n_bins - 1)/n_bins, and the mean errors, both (n_bins,).

    Raises:
        ValueError: shapes differ, or ``n_bins`` is below 1.
    """
    if n_bins < 1:
        raise ValueError(f"a sparsification curve needs at least one point, not n_bins={n_bins}")
    risk = _risk(_errors_by_certainty(error, uncertainty))
    bins = torch.arange(n_bins, device=risk.device)
    removed = bins.double() / n_bins
    if not len(risk):
        return removed.float(), torch.full_like(removed, math.nan).float()
    remaining = len(risk) - len(risk) * bins // n_bins
    return removed.float(), risk[remaining - 1].float()


def spearman(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Spearman's rank correlation (scalar in [-1, 1]); equal values share their mean rank.

    NaN where either is constant, for then there is no order to correlate.

    Args:
        error: magnitudes, any shape.
        uncertainty: same shape.

    Raises:
        ValueError: shapes differ.
    """
    error, uncertainty = _select(None, error, uncertainty)
    first, second = (_mean_ranks(values) for values in (error, uncertainty))
    first, second = first - first.mean(), second - second.mean()
    norms = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
    return ((first @ second) / norms).float()


def gaussian_nll(y: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Negative log-likelihood of ``y`` under Gaussians, in nats, per element.

    ``mean`` and ``var`` (above 0, squared unit of ``y``) broadcast against ``y``.
    """
    return 0.5 * ((2 * torch.pi * var).log() + (y - mean).square() / var)


def _select(mask: Tensor | None, *values: Tensor) -> list[Tensor]:
    """``values`` where ``mask`` holds, flat."""
    shapes = {tuple(v.shape) for v in (*values, *([] if mask is None else [mask]))}
    if len(shapes) > 1:
        raise ValueError(
            f"values and mask of a metric must have one shape, not {', '.join(map(str, shapes))} "
            "(a mask (B, H, W) needs a channel axis for maps (B, 1, H, W): mask[:, None])"
        )
    return [v.flatten() if mask is None else v[mask] for v in values]


def _errors_by_certainty(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Errors (n,) float64, the most certain first, averaged over groups of equal uncertainty."""
    error, uncertainty = _select(None, error, uncertainty)
    uncertainty, order = uncertainty.sort()
    ordered = error[order].double()
    # NaN sorts as the largest, and would pass for a pixel that is merely very uncertain.
    ordered = ordered.masked_fill(uncertainty.isnan(), math.nan)
    group, sizes = _groups_of_equals(uncertainty)
    if len(sizes) == len(ordered):
        return ordered
    sums = ordered.new_zeros(len(sizes)).index_add_(0, group, ordered)
    return (sums / sizes)[group]


def _risk(ordered: Tensor) -> Tensor:
    """Mean of the first k of (n,) errors for k = 1..n."""
    return ordered.cumsum(0) / torch.arange(
        1, len(ordered) + 1, dtype=ordered.dtype, device=ordered.device
    )


def _area(risk: Tensor) -> Tensor:
    if not len(risk):
        return risk.new_tensor(math.nan)
    # Trapezoids of width 1/n between the points, and a rectangle of the first risk before them.
    return risk.mean() + (risk[0] - risk[-1]) / (2 * len(risk))


def _mean_ranks(values: Tensor) -> Tensor:
    """Ranks (n,) float64 from 1; equal values share the mean of theirs, and NaN has none."""
    ordered, order = values.sort()
    group, sizes = _groups_of_equals(ordered)
    last = sizes.cumsum(0)
    mean_rank = (last - (sizes - 1) / 2.0).double()
    ranks = torch.empty(len(values), dtype=torch.float64, device=values.device)
    ranks[order] = mean_rank[group].masked_fill(ordered.isnan(), math.nan)
    return ranks


def _groups_of_equals(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Group (n,) of each of the sorted values, and the sizes of the groups."""
    _, group, sizes = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    return group, sizes
