"""Fitting calibrations; see ``dust3r.uncertainty.calibration`` for what they promise."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from scipy.optimize import isotonic_regression, root_scalar

from dust3r.uncertainty.calibration import (
    LEVELS,
    STATED,
    UNALIGNED,
    BinnedBy,
    Calibration,
    Kind,
    ScaleBy,
    binned_value,
    coverage,
)
from dust3r.uncertainty.calibration_samples import ErrorSamples, weighted_quantile
from dust3r.uncertainty.stated import DIMENSIONS, probability_at_truth, radial_quantile

LEAST_PIXELS = 100

_GRID = np.arange(1, 100) / 100
_KNOTS = 256
_LEAST_STEP = 1e-9
_FOLDS = 5
_LARGEST_FACTOR = 1e12


def fit(
    samples: ErrorSamples,
    *,
    family: str,
    region: str,
    dataset: str,
    checkpoint: str = "",
    checkpoint_sha256: str = "",
    unit: str = "m",
    alignment: str = UNALIGNED,
    pairs: int | None = None,
    scale_by: ScaleBy = "nll",
    bins: int = 1,
    binned_by: BinnedBy | None = None,
) -> Calibration:
    """Calibrate on held-out errors, all three kinds at once.

    Args:
        samples: of images that were not trained on.
        family, region, dataset, checkpoint, checkpoint_sha256, unit, alignment: see
            ``Calibration``.
        pairs: number of pairs that the images are of; None for half as many as images.
        scale_by: how to find the factor. With ``samples.df`` both are of Student-t's.
        bins: groups of as many pixels each, with conformal radii of their own (Mondrian; Vovk et
            al., Algorithmic Learning in a Random World, 2005): the promise then holds in each.
        binned_by: what groups are of; needed where ``bins`` is above 1. ``'relative'`` needs
            ``samples.depths``.

    Raises:
        ValueError: an argument is unknown, or there are too few pixels, or images (in a group).
    """
    _check_fit(samples, region, scale_by, bins, binned_by)
    fitted = _fit(
        samples,
        family=family,
        region=region,
        dataset=dataset,
        checkpoint=checkpoint,
        checkpoint_sha256=checkpoint_sha256,
        unit=unit,
        alignment=alignment,
        pairs=-(-samples.count // 2) if pairs is None else pairs,
        scale_by=scale_by,
        bins=bins,
        binned_by=binned_by,
    )
    if fitted.levels[-1] < LEVELS[-1] - 1e-9:
        where = "some group of pixels comes from" if bins > 1 else "there are"
        raise ValueError(
            f"{where} too few images: radii that hold {100 * LEVELS[-1]:g}% need 19 images or more"
            f"{' in every group' if bins > 1 else ''}, and these allow {fitted.levels[-1]:g}. "
            f"Give more pairs{', or fewer bins' if bins > 1 else ''}"
        )
    return replace(fitted, coverage=_cross_validated(samples, fitted, bins))


def _fit(
    samples: ErrorSamples,
    *,
    region: str,
    scale_by: ScaleBy,
    bins: int,
    binned_by: BinnedBy | None,
    **told: object,
) -> Calibration:
    weights = samples.weights
    find = _likeliest_factor if scale_by == "nll" else _median_factor
    scale = find(samples, weights, region)
    if not 1 / _LARGEST_FACTOR < scale < _LARGEST_FACTOR:
        raise ValueError(
            f"the errors are {scale:g} times what was stated: no factor can mend that. Check that "
            "errors and sigmas have one unit, or use scale_by='median' where a few pixels are wild"
        )
    probabilities = probability_at_truth(samples.errors, samples.sigmas * scale, region, samples.df)
    edges, levels, radii = _conformal_radii(samples, weights, bins, binned_by)
    return Calibration(
        region=region,
        scale=scale,
        scale_by=scale_by,
        knots=_isotonic_knots(probabilities, weights),
        levels=levels,
        radii=radii,
        edges=edges,
        binned_by=binned_by if len(edges) else None,
        pixels=len(samples),
        left_out=samples.left_out,
        images=samples.count,
        **told,
    )


def _likeliest_factor(samples: ErrorSamples, weights: np.ndarray, region: str) -> float:
    """Where the mean NLL of the scaled distributions is least, as ``dust3r.uncertainty.stated``.

    For a Gaussian the root mean square of error / sigma. For Student-t's, in u = log factor, the
    NLL D u + (df + D)/2 log(1 + D r^2 e^(-2u) / (df - 2)) is convex: its slope has one root.
    """
    square, df = np.square(samples.ratios), samples.df
    mean = float(weights @ square)
    if df is None or not 0 < mean < np.inf:
        return float(np.sqrt(mean))
    dim = DIMENSIONS[region]

    def slope(log_factor: float) -> float:
        x = dim * square * np.exp(-2 * log_factor) / (df - 2)
        return dim - float(weights @ ((df + dim) * x / (1 + x)))

    limit = float(np.log(_LARGEST_FACTOR))
    if slope(-limit) > 0 or slope(limit) < 0:
        return 0.0
    return float(np.exp(root_scalar(slope, bracket=(-limit, limit), xtol=1e-10).root))


def _median_factor(samples: ErrorSamples, weights: np.ndarray, region: str) -> float:
    """What makes half of the errors lie within what is stated to hold half."""
    ratio = samples.ratios / radial_quantile(0.5, region, samples.df)
    return float(weighted_quantile(ratio, weights, [0.5])[0])


def _isotonic_knots(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Stated and observed probabilities (2, n) at up to ``_KNOTS`` quantiles, with both ends."""
    chosen = weighted_quantile(probabilities, weights, np.arange(1, _KNOTS) / _KNOTS)
    stated = np.unique(chosen[(chosen > 0) & (chosen < 1)])
    order = np.argsort(probabilities)
    reached = np.append(0.0, np.cumsum(weights[order]))
    observed = reached[np.searchsorted(probabilities[order], stated, side="right")]
    if len(observed):
        observed = isotonic_regression(observed).x
    # A step without height, but for rounding, has no inverse, and the ends are 0 and 1.
    rising = (np.diff(observed, prepend=0.0) > _LEAST_STEP) & (observed < 1 - _LEAST_STEP)
    return np.stack([np.r_[0, stated[rising], 1], np.r_[0, observed[rising], 1]])


def _conformal_radii(
    samples: ErrorSamples, weights: np.ndarray, bins: int, binned_by: BinnedBy | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, levels and radii, as of ``Calibration``; levels that all groups have images for."""
    if bins == 1 or binned_by is None:
        groups, edges = [samples], np.zeros(0)
    else:
        value = binned_value(binned_by, samples.sigmas, samples.depths)
        edges = np.unique(weighted_quantile(value, weights, np.arange(1, bins) / bins))
        group = np.searchsorted(edges, value)
        groups = [samples.only(group == number) for number in range(len(edges) + 1)]
        if not len(groups[-1]):
            edges, groups = edges[:-1], groups[:-1]
    # The new image is one of K + 1, and may hold the largest errors of all.
    radii = np.stack(
        [
            weighted_quantile(one.ratios, one.weights * one.count / (one.count + 1), _GRID)
            for one in groups
        ]
    )
    finite = np.isfinite(radii).all(axis=0)
    return edges, _GRID[finite], radii[:, finite]


def _cross_validated(
    samples: ErrorSamples, fitted: Calibration, bins: int
) -> dict[str, tuple[float, ...]]:
    """``Calibration.coverage``, by folds of neighbouring images, which resemble each other."""
    shares: dict[str, tuple[float, ...]] = {
        STATED: tuple(coverage(samples, None, LEVELS, region=fitted.region).shares.tolist())
    }
    folds = samples.images * _FOLDS // samples.count
    told = {"family": "", "unit": "", "dataset": "", "checkpoint": "", "checkpoint_sha256": ""}
    parts = []
    for fold in range(_FOLDS):
        held_out, rest = samples.only(folds == fold), samples.only(folds != fold)
        one = _fit(
            rest,
            region=fitted.region,
            scale_by=fitted.scale_by,
            bins=bins,
            binned_by=fitted.binned_by,
            pairs=0,
            **told,
        )
        parts.append((held_out, one))
    for kind in get_args(Kind):
        shares[kind] = tuple(_mean_share(parts, level, kind) for level in LEVELS)
    return shares


def _mean_share(
    parts: Sequence[tuple[ErrorSamples, Calibration]], level: float, kind: Kind
) -> float:
    if kind == "conformal" and any(one.levels[-1] < level - 1e-9 for _, one in parts):
        return float("nan")
    shares = [coverage(held, None, [level], one, kind=kind, draws=2).shares for held, one in parts]
    return float(np.average(np.ravel(shares), weights=[held.count for held, _ in parts]))


def _check_fit(
    samples: ErrorSamples, region: str, scale_by: str, bins: int, binned_by: str | None
) -> None:
    if region not in DIMENSIONS:
        raise ValueError(f"region {region!r} is unknown; give one of {', '.join(DIMENSIONS)}")
    if scale_by not in get_args(ScaleBy):
        raise ValueError(f"scale_by {scale_by!r} is unknown; give nll or median")
    if binned_by not in (None, *get_args(BinnedBy)) or (bins > 1) != (binned_by is not None):
        raise ValueError(
            f"bins={bins} with binned_by={binned_by!r}: give one bin and None, or more bins and "
            "'sigma' or 'relative'"
        )
    if len(samples) < LEAST_PIXELS or samples.count < 2 * _FOLDS:
        raise ValueError(
            f"{len(samples)} usable pixels of {samples.count} images are too few to calibrate on "
            f"({samples.left_out} more are not finite or state no sigma); give {LEAST_PIXELS} "
            "pixels or more, of 19 images or more"
        )
