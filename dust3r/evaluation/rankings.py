"""Exact rankings of pixels: the same numbers as the sketches give, from all pixels at once."""

import numpy as np
import torch

from dust3r.evaluation.sketch import Curve
from dust3r.uncertainty.metrics import PixelRanking, spearman


class ExactRanking(PixelRanking):
    """AURC, AUSE and rank correlation of pixels, all of which it keeps, 8 bytes each."""

    def compute(self) -> dict[str, object]:
        """See :func:`ranking_of_pixels`."""
        error, uncertainty = (values.cpu().numpy() for values in self.pixels())
        return ranking_of_pixels(error, uncertainty)


def ranking_of_pixels(error: np.ndarray, uncertainty: np.ndarray) -> dict[str, object]:
    """As ``sketch.ranking_of_histograms``, of errors and uncertainties (n,); bounds are 0.

    The areas are those of ``dust3r.uncertainty.metrics.aurc`` and ``ause``.
    """
    curve, oracle = _curve(error, uncertainty), _curve(error, error)
    rho = float(spearman(torch.from_numpy(error), torch.from_numpy(uncertainty)))
    return {
        "pixels": len(error),
        "aurc": curve.area,
        "ause": curve.area - oracle.area,
        "rho": rho,
        "aurc_bound": 0.0,
        "ause_bound": 0.0,
        "rho_bound": 0.0,
        "risk": curve.risk,
        "oracle_risk": oracle.risk,
    }


def _curve(error: np.ndarray, uncertainty: np.ndarray) -> Curve:
    order = np.argsort(uncertainty)
    ordered = uncertainty[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=np.nan) != 0)
    if not len(starts):
        return Curve.of(np.empty(0), np.empty(0))
    counts = np.diff(starts, append=len(ordered))
    return Curve.of(counts, np.add.reduceat(error[order].astype(np.float64), starts))
