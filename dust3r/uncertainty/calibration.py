"""Stated uncertainty made true: factors, distributions and radii fitted on held-out errors.

``dust3r.uncertainty.calibration_fit.fit`` turns errors of known pixels and what was stated of them
into a ``Calibration``, of three kinds:

- ``'scale'``: one factor for all deviations, the shape of the distribution as stated (Laves et al.,
  Well-Calibrated Regression Uncertainty in Medical Imaging, MIDL 2020);
- ``'isotonic'``: after that factor, a monotone map of stated to observed probabilities (Kuleshov
  et al., Accurate Uncertainties for Deep Learning Using Calibrated Regression, ICML 2018);
- ``'conformal'``: quantiles of |error| / sigma (Lei et al., Distribution-Free Predictive Inference
  for Regression, JASA 2018), which hold whatever the distribution is.

What is exchangeable are images, not pixels: those of one image err together, so each image has the
same total weight, and the correction for the finite sample counts images. The promise of
``'conformal'`` is that a pixel drawn from a new image of the same kind lies within its radius with
at least the stated probability, over draws of the images that were fitted on and of the new one
(hierarchical conformal prediction: Dunn et al., JASA 2023; Lee et al., 2023). It says nothing of
other kinds of images, nor of each image by itself. Images of one recording resemble each other:
give them one name where a new recording is what the promise should be about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from dust3r.uncertainty.calibration_samples import ErrorSamples
from dust3r.uncertainty.stated import probability_at_truth, radial_cdf, radial_quantile

Kind = Literal["conformal", "isotonic", "scale"]
ScaleBy = Literal["nll", "median"]
BinnedBy = Literal["sigma", "relative"]

LEVELS = (0.5, 0.8, 0.9, 0.95)
STATED = "stated"
UNALIGNED = "none"


@dataclass(frozen=True)
class Calibration:
    """What ``fit`` found; read and written by ``dust3r.uncertainty.calibration_file``.

    Attributes:
        family: a name of ``dust3r.uncertainty.families.FAMILIES``.
        region: ``'interval'``, ``'ball'`` or ``'ellipsoid'``; see ``dust3r.uncertainty.stated``.
        unit: of errors and radii, such as ``'m'``.
        scale: what sigma is to be multiplied by.
        scale_by: ``'nll'``, the likeliest factor, or ``'median'``, the ratio of the medians of
            observed and stated errors, which a few wild pixels do not move.
        knots: (2, n) stated and observed probabilities, increasing from 0 to 1.
        levels: (L,) shares that ``radii`` hold, increasing.
        radii: (bins, L) in units of sigma.
        edges: (bins - 1,) of the bins, increasing.
        binned_by: what is binned, ``'sigma'`` or ``'relative'`` (sigma / depth); None for one bin.
        dataset: specification of what it was fitted on.
        checkpoint: name of the file of the weights.
        checkpoint_sha256: of that file; empty where it was not told.
        pixels, left_out: that were fitted on, and that were not finite or stated no sigma.
        images, pairs: that were fitted on.
        coverage: ``'stated'`` (before) and each kind -> observed shares at ``LEVELS``. Those of the
            kinds are cross-validated: the images fitted on are never those measured on. NaN where
            too few images were left to fit.
        alignment: of each image's points to the true ones before errors counted, one of
            ``dust3r.uncertainty.alignment.POINT_ALIGNMENTS``; regions are then of errors of shape.
            ``'none'``: they are of points and depths as they are.
    """

    family: str
    region: str
    unit: str
    scale: float
    scale_by: ScaleBy
    knots: np.ndarray
    levels: np.ndarray
    radii: np.ndarray
    edges: np.ndarray
    binned_by: BinnedBy | None
    dataset: str
    checkpoint: str
    checkpoint_sha256: str
    pixels: int
    left_out: int
    images: int
    pairs: int
    coverage: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    alignment: str = UNALIGNED

    def radius(
        self,
        sigma: ArrayLike,
        level: float,
        *,
        kind: Kind = "conformal",
        df: ArrayLike | None = None,
        depth: ArrayLike | None = None,
    ) -> np.ndarray:
        """How far from the prediction the truth lies with probability ``level`` at most.

        Args:
            sigma: any shape, as stated.
            level: in (0, 1). ``'conformal'`` takes the next of ``levels`` where it is between two.
            kind: of calibration.
            df: same shape, degrees of freedom where they were given to ``fit``.
            depth: same shape, of calibrations by relative sigma.

        Returns:
            The shape of ``sigma``, in the unit of the errors; for ellipsoids a Mahalanobis length.
            NaN where ``sigma`` or ``depth`` is.

        Raises:
            ValueError: the level was not fitted, the kind is unknown, or ``depth`` is missing.
        """
        sigma, df = np.asarray(sigma, np.float64), _floats(df)
        _check_kind(kind, level)
        if kind == "conformal":
            return sigma * self._conformal(sigma, level, _floats(depth))
        share = level if kind == "scale" else self._stated_share(level)
        return sigma * self.scale * radial_quantile(share, self.region, df)

    def interval(
        self,
        mean: ArrayLike,
        sigma: ArrayLike,
        level: float,
        *,
        kind: Kind = "conformal",
        df: ArrayLike | None = None,
        depth: ArrayLike | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval that holds the true depth with probability ``level``.

        Symmetric about ``mean``, but for ``'isotonic'``, which leaves out equal shares above and
        below. Arguments and errors as of ``radius``.

        Raises:
            ValueError: this is a calibration of points, which have a radius.
        """
        if self.region != "interval":
            raise ValueError(
                f"this calibration is of points (a {self.region}), which have no interval: use "
                "radius, or calibrate a family of depth"
            )
        mean, sigma = np.asarray(mean, np.float64), np.asarray(sigma, np.float64)
        if kind != "isotonic":
            radius = self.radius(sigma, level, kind=kind, df=df, depth=depth)
            return mean - radius, mean + radius
        _check_kind(kind, level)
        ends = []
        for share in ((1 - level) / 2, (1 + level) / 2):
            stated = float(np.interp(share, self.knots[1], self.knots[0]))
            away = radial_quantile(abs(2 * stated - 1), self.region, _floats(df))
            ends.append(mean + np.sign(stated - 0.5) * sigma * self.scale * away)
        return ends[0], ends[1]

    def cdf(self, errors: ArrayLike, sigmas: ArrayLike, df: ArrayLike | None = None) -> np.ndarray:
        """Recalibrated probability at the truth, uniform where the calibration holds.

        Of a depth at most the true one for intervals, whose errors are signed (prediction less
        truth); of an error at most this long for points. All arguments have one shape.
        """
        stated = probability_at_truth(
            np.asarray(errors, np.float64),
            np.asarray(sigmas, np.float64) * self.scale,
            self.region,
            _floats(df),
        )
        return np.interp(stated, *self.knots)

    def sigma(self, sigma: ArrayLike) -> np.ndarray:
        """Deviations after variance scaling."""
        return self.scale * np.asarray(sigma, np.float64)

    def _conformal(self, sigma: np.ndarray, level: float, depth: np.ndarray | None) -> np.ndarray:
        place = int(np.searchsorted(self.levels, level - 1e-9))
        if place == len(self.levels):
            raise ValueError(
                f"no conformal radius at level {level}: {self.images} images allow at most "
                f"{self.levels[-1]:g}. Fit on more images, or use kind='scale' or 'isotonic'"
            )
        if self.binned_by is None:
            return self.radii[0, place]
        value = binned_value(self.binned_by, sigma, depth)
        radii = self.radii[np.searchsorted(self.edges, value), place]
        return np.where(np.isfinite(value), radii, np.nan)

    def _stated_share(self, level: float) -> float:
        """Stated probability of a centred region that is observed to hold ``level``."""
        stated, observed = self.knots
        if self.region != "interval":
            return float(np.interp(level, observed, stated))
        shares = np.unique(np.abs(2 * stated - 1))
        ends = (np.interp(0.5 + side * shares / 2, stated, observed) for side in (1, -1))
        return float(np.interp(level, np.subtract(*ends), shares))


@dataclass(frozen=True)
class Coverage:
    """Observed shares of pixels within their stated regions; each image counts the same.

    Attributes:
        levels: (L,) as stated.
        shares: (L,) as observed.
        standard_errors: (L,) of ``shares``, by a bootstrap over images; NaN with a single image.
        pixels, images: that are in the shares.
        left_out: pixels that are not, for they were not finite or stated no sigma.
    """

    levels: np.ndarray
    shares: np.ndarray
    standard_errors: np.ndarray
    pixels: int
    images: int
    left_out: int


def coverage(
    errors: ArrayLike | Sequence[ArrayLike] | ErrorSamples,
    sigmas: ArrayLike | Sequence[ArrayLike] | None = None,
    levels: Sequence[float] = LEVELS,
    calibration: Calibration | None = None,
    *,
    kind: Kind = "conformal",
    region: str = "interval",
    df: ArrayLike | Sequence[ArrayLike] | None = None,
    depths: ArrayLike | Sequence[ArrayLike] | None = None,
    draws: int = 400,
    seed: int = 0,
) -> Coverage:
    """How many true values lie within the regions that are to hold given shares of them.

    Args:
        errors, sigmas, df, depths: see ``ErrorSamples.from_arrays``; or ``errors`` may be samples,
            and the others None.
        levels: shares to look at.
        calibration: None for the regions as stated, of a Gaussian or, with ``df``, a Student-t.
        kind: of calibration.
        region: of what is stated; that of ``calibration`` where there is one.
        draws, seed: of the bootstrap, which draws images.

    Raises:
        ValueError: there is no usable pixel, shapes differ, or ``calibration`` has no such level.
    """
    samples = errors
    if not isinstance(samples, ErrorSamples):
        if sigmas is None:
            raise ValueError("errors were given without sigmas; give what was stated of each")
        samples = ErrorSamples.from_arrays(errors, sigmas, df=df, depths=depths)
    if not len(samples):
        raise ValueError(
            f"no pixel is usable ({samples.left_out} are not finite or state no sigma), so there "
            "is no coverage to measure"
        )
    sizes = np.bincount(samples.images)
    by_image = np.empty((samples.count, len(levels)))
    for column, level in enumerate(levels):
        within = _within(samples, level, calibration, kind, region)
        by_image[:, column] = np.bincount(samples.images, within) / sizes
    count = samples.count
    deviations = np.full(len(levels), np.nan)
    if count > 1:
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
        deviations = (drawn @ by_image / count).std(axis=0, ddof=1)
    shares = by_image.mean(axis=0)
    return Coverage(
        np.asarray(levels, float), shares, deviations, len(samples), count, samples.left_out
    )


def least_levels(
    samples: ErrorSamples,
    calibration: Calibration | None = None,
    *,
    kind: Kind = "conformal",
    region: str = "interval",
) -> np.ndarray:
    """Of every pixel (N,) the least level whose region holds the true value.

    The share of pixels at most L is thus the coverage at L, of ``coverage``, for all L at once.

    Args:
        samples: the pixels.
        calibration, kind, region: as of ``coverage``.

    Returns:
        In [0, 1]; for ``'conformal'`` one of ``calibration.levels``, and 1 beyond their radii.
    """
    if calibration is None:
        return radial_cdf(samples.ratios, region, samples.df)
    _check_kind(kind, 0.5)
    if kind != "conformal":
        scaled = samples.ratios / calibration.scale
        if kind == "scale":
            return radial_cdf(scaled, calibration.region, samples.df)
        held = calibration.cdf(samples.errors, samples.sigmas, samples.df)
        return held if calibration.region != "interval" else np.abs(2 * held - 1)
    groups = np.zeros(len(samples), int)
    if calibration.binned_by is not None:
        value = binned_value(calibration.binned_by, samples.sigmas, samples.depths)
        groups = np.searchsorted(calibration.edges, value)
    levels, found = np.append(calibration.levels, 1.0), np.empty(len(samples))
    for number, radii in enumerate(calibration.radii):
        of_group = groups == number
        found[of_group] = levels[np.searchsorted(radii, samples.ratios[of_group])]
    return found


def binned_value(binned_by: BinnedBy, sigma: np.ndarray, depth: np.ndarray | None) -> np.ndarray:
    """What the bins are of; ValueError where they need a ``depth`` that is None."""
    if binned_by == "sigma":
        return sigma
    if depth is None:
        raise ValueError("this calibration is by relative sigma: give the depth of every pixel")
    with np.errstate(divide="ignore", invalid="ignore"):
        return sigma / depth


def _within(
    samples: ErrorSamples,
    level: float,
    calibration: Calibration | None,
    kind: Kind,
    region: str,
) -> np.ndarray:
    """(N,) which errors lie within the region of a level."""
    sigmas, df = samples.sigmas, samples.df
    if calibration is None:
        return samples.ratios <= radial_quantile(level, region, df)
    if calibration.region == "interval" and kind == "isotonic":
        # The truth, seen from the prediction, is the error turned round.
        low, high = calibration.interval(0.0, sigmas, level, kind=kind, df=df)
        return (low <= -samples.errors) & (-samples.errors <= high)
    radius = calibration.radius(sigmas, level, kind=kind, df=df, depth=samples.depths)
    return np.abs(samples.errors) <= radius


def _check_kind(kind: str, level: float) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r} is unknown; give one of {', '.join(get_args(Kind))}")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not a share between 0 and 1, such as 0.9")


def _floats(values: ArrayLike | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float64)
