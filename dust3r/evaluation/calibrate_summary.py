"""Coverage of images, and the numbers of a data set from those of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CURVE = np.arange(1, 100) / 100

_DRAWS = 400
_SPREAD = (10, 90)


@dataclass(frozen=True)
class ImageCoverage:
    """One image by one subject.

    Attributes:
        pair, view, label, folder: which image it is, and the folder that its file is in.
        valid, left_out: pixels with a true depth, and those of them whose prediction is not finite
            or states no sigma: they are in no share.
        scale: median ratio of true to predicted distances from camera 1; of depths for intervals.
        curve: (kinds, 99) shares held at ``CURVE``; NaN without a pixel, as the others.
        shares, radii, medians: (kinds, levels) shares held, and mean and median radius.
    """

    pair: int
    view: int
    label: str
    folder: str
    valid: int
    left_out: int
    scale: float
    curve: np.ndarray
    shares: np.ndarray
    radii: np.ndarray
    medians: np.ndarray


def summarise(
    rows: Sequence[ImageCoverage], kinds: Sequence[str], levels: Sequence[float]
) -> dict[str, Any]:
    """Numbers of a subject on a data set, from those of its images.

    Returns:
        Counts; ``scale``, the median over images; and ``kinds``: for each, lists over ``levels``
        of ``coverage`` (mean over images), ``standard_error`` of it, ``image_sd``, ``image_p10``
        and ``image_p90`` (spread over images), ``radius`` and ``median_radius`` (means over
        images); ``curve``, coverage at ``CURVE``, and ``calibration_error``, the mean of its
        distances from ``CURVE``.
    """
    used = [row for row in rows if row.left_out < row.valid]
    folders = [row.folder for row in used]
    by_folder = len(set(folders)) > 1
    numbers: dict[str, Any] = {
        "images": len(used),
        "images_without": len(rows) - len(used),
        "folders": len(set(folders)),
        "valid": sum(row.valid for row in rows),
        "left_out": sum(row.left_out for row in rows),
        "scale": float(np.nanmedian([row.scale for row in used])),
        "error_over": "folders" if by_folder else "images",
        "levels": list(levels),
        "kinds": {},
    }
    groups = np.unique(folders if by_folder else np.arange(len(used)), return_inverse=True)[1]
    for place, kind in enumerate(kinds):
        shares = np.stack([row.shares[place] for row in used])
        curve = np.stack([row.curve[place] for row in used]).mean(axis=0)
        low, high = np.percentile(shares, _SPREAD, axis=0)
        numbers["kinds"][kind] = {
            "coverage": shares.mean(axis=0),
            "standard_error": _standard_errors(shares, groups),
            "image_sd": shares.std(axis=0, ddof=1) if len(used) > 1 else np.nan * low,
            "image_p10": low,
            "image_p90": high,
            "radius": np.mean([row.radii[place] for row in used], axis=0),
            "median_radius": np.mean([row.medians[place] for row in used], axis=0),
            "curve": curve,
            "calibration_error": float(np.abs(curve - CURVE).mean()),
        }
    return numbers


def _standard_errors(shares: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Of means over images (K, L), by a bootstrap over their groups (K,)."""
    count = groups.max() + 1
    if count < 2:
        return np.full(shares.shape[1], np.nan)
    sizes = np.bincount(groups)
    sums = np.zeros((count, shares.shape[1]))
    np.add.at(sums, groups, shares)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _DRAWS)
    return (drawn @ sums / (drawn @ sizes)[:, None]).std(axis=0, ddof=1)
