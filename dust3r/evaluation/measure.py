"""What is measured of one image by one method."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.evaluation.levels import LEVELS
from dust3r.evaluation.methods import DEPTH, POINT, Method, Reading
from dust3r.evaluation.rankings import Columns
from dust3r.evaluation.sketch import Curve, Sparse, rank_correlation
from dust3r.uncertainty.alignment import align_points, depth_scale
from dust3r.uncertainty.estimates import inverse_confidence
from dust3r.utils.cloud_scale import NormMode
from dust3r.utils.geometry import geotrf, inv
from dust3r.utils.view import points_key

OWN, CONFIDENCE = "own", "conf"
COUNTS = ("valid", "used", "bad_prediction", "bad_uncertainty", "bad_likelihood", "unaligned")
STREAMED_LEVELS = 8

Maps = Mapping[str, Any]


@dataclass
class ImageMeasure:
    """One image by one method; all of it plain arrays and numbers.

    Attributes:
        label, view: name of the image, and 1 or 2.
        counts: pixels by ``COUNTS``: with a true depth; used; left out since a predicted point or
            depth, an uncertainty or a likelihood is not finite (``bad_likelihood`` leaves out of
            the likelihood alone); without an alignment.
        errors: target -> (sum of errors, sum of their squares) over used pixels.
        nll: sum over pixels, and their number.
        levels: (``LEVELS``,) histogram of ``Reading.level``.
        numbers: (target, by) -> ``aurc``, ``ause``, ``rho`` within this image.
        pixels: exact: target -> errors, ``own`` and ``conf`` -> uncertainties, of used pixels.
            Equal columns of methods of one image are one object. Of a record that was read: where
            it has them, a ``records.Run`` each.
        sketches: streaming: (target, by) -> errors by uncertainty, and joint; (target, 'oracle').
    """

    label: str
    view: int
    counts: dict[str, int]
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    nll: tuple[float, int] = (0.0, 0)
    levels: np.ndarray = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    numbers: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    sketches: dict[tuple[str, str], tuple[Sparse, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorMaps:
    """Of one view, (H, W), NaN where there is none: what is valid, and point errors in metres."""

    valid: Tensor
    point: Tensor
    aligned: bool


def point_errors(view: Maps, prediction: Maps, alignment: str) -> ErrorMaps:
    """Distances of predicted points to the true ones after a similarity, of a batch of one.

    The similarity is fitted to the valid pixels whose prediction is finite.
    """
    valid = view["valid_mask"][0]
    points, truth = prediction[points_key(prediction)][0].float(), view["pts3d"][0].float()
    fitted = valid & points.isfinite().all(-1)
    error = torch.full(valid.shape, torch.nan, device=points.device)
    # In the camera's own frame numbers are smallest, and so are their rounding errors.
    truth = geotrf(inv(view["camera_pose"][0].float()), truth)
    places = fitted.flatten().nonzero()[:, 0]
    points, truth = (one.reshape(-1, 3).index_select(0, places) for one in (points, truth))
    moved = align_points(points, truth, alignment)
    if moved is not None:
        x, y, z = (moved - truth).square().unbind(-1)
        error.view(-1)[places] = (x + y + z).sqrt()
    return ErrorMaps(valid, error, moved is not None)


def metres_of_unit(views: tuple[Maps, Maps], predictions: tuple[Maps, Maps]) -> float:
    """Metres that the unit of a pair's points stands for: the ratio of true to predicted distance.

    Mean distances from camera 1, of the valid pixels of both views whose prediction is finite, as
    the criterion of a model without a scale compares them (``norm_mode='avg_dis'``). 1 where there
    is no such pixel.
    """
    to_camera1 = inv(views[0]["camera_pose"].float())
    predicted, truth, valid = [], [], []
    for view, prediction in zip(views, predictions, strict=True):
        points = prediction[points_key(prediction)].float()
        predicted.append(points.flatten(1, 2))
        truth.append(geotrf(to_camera1, view["pts3d"].float()).flatten(1, 2))
        valid.append((view["valid_mask"] & points.isfinite().all(-1)).flatten(1))
    counted = torch.cat(valid, 1)
    if not counted.any():
        return 1.0
    mean = NormMode.parse("avg_dis")
    true_length, length = (mean.length(torch.cat(one, 1), counted) for one in (truth, predicted))
    return float(true_length / length)


def depth_errors(view: Maps, reading: Reading) -> Tensor:
    """Absolute errors (H, W) of a family's own depth after one scale per image; NaN where none.

    The scale is the ratio of medians; 1 where it would not be positive, for depths that lie behind
    the camera have none, and are wrong as they are.
    """
    depth, truth = reading.depth[0], view["depthmap"][0].float()
    fitted = view["valid_mask"][0] & depth.isfinite()
    error = torch.full(truth.shape, torch.nan, device=truth.device)
    places = fitted.flatten().nonzero()[:, 0]
    if len(places):
        depth, truth = (values.flatten().index_select(0, places) for values in (depth, truth))
        scale = depth_scale(depth, truth, "median")
        scale = scale if 0 < scale < np.inf else 1.0
        error.view(-1)[places] = (scale * depth - truth).abs()
    return error


def rankings_of(method: Method, has_confidence: bool) -> tuple[str, ...]:
    """What ranks a method's errors: its uncertainty, and 1 / confidence where that is another."""
    return (OWN, CONFIDENCE) if has_confidence and method.family != CONFIDENCE else (OWN,)


def spread_doubt(confidence: Tensor) -> Tensor:
    """In the order of 1 / confidence, but for the sketches, whose bins are as wide as values are.

    Confidences are above 1 and crowd there: 1 / (confidence - 1) tells them apart. Times 2^-15,
    which puts them in the middle of what the joint histogram covers.
    """
    above = (confidence.float() - 1).clamp(min=2.0**-24)
    return torch.where(confidence > 1, 1 / above, 2.0**24 / confidence.float()) * 2.0**-15


def measure_image(
    view: Maps,
    prediction: Maps,
    pose1: Tensor,
    method: Method,
    geometry: ErrorMaps,
    number: int,
    columns: Columns | None = None,
    metres: float = 1.0,
) -> ImageMeasure:
    """Measure one image, a batch of one, by one method.

    Args:
        pose1: camera 1's pose (1, 4, 4).
        geometry: of ``point_errors``, which methods of one model share.
        number: 1 or 2, which view it is.
        columns: of the image, for exact rankings; None gives sketches in place of pixels, and the
            calibration of every eighth pixel.
        metres: of ``metres_of_unit``, for models without a scale. What families on points state
            goes to metres by it: deviations before they rank, and densities.
    """
    streaming = columns is None
    reading = method.read(prediction)
    valid = geometry.valid
    maps = {POINT: geometry.point}
    if DEPTH in method.targets:
        maps[DEPTH] = depth_errors(view, reading)
    doubts = {OWN: reading.total[0] * metres}
    if CONFIDENCE in rankings_of(method, "conf" in prediction):
        doubts[CONFIDENCE] = inverse_confidence(prediction)[0]
    good_errors = valid & torch.stack([m.isfinite() for m in maps.values()]).all(0)
    good_doubts = valid & torch.stack([m.isfinite() for m in doubts.values()]).all(0)
    used = good_errors & good_doubts
    unaligned = 0 if geometry.aligned else int(valid.sum())
    counts = {
        "valid": int(valid.sum()),
        "used": int(used.sum()),
        "bad_prediction": int((valid & ~good_errors).sum()) - unaligned,
        "bad_uncertainty": int((valid & ~good_doubts).sum()),
        "bad_likelihood": 0,
        "unaligned": unaligned,
    }
    measure = ImageMeasure(view["label"][0], number, counts)
    if not counts["used"]:
        return measure
    used = used.flatten().nonzero()[:, 0]
    errors = {target: _numpy(m, used) for target, m in maps.items()}
    if streaming and "conf" in prediction:
        doubts[OWN if method.family == CONFIDENCE else CONFIDENCE] = spread_doubt(
            prediction["conf"][0]
        )
    uncertainties = {by: _numpy(m, used) for by, m in doubts.items()}
    measure.errors = {
        target: (float(e.sum(dtype=np.float64)), float(np.square(e, dtype=np.float64).sum()))
        for target, e in errors.items()
    }
    _likelihood(measure, view, reading, pose1, used, metres, streaming)
    _rank(measure, errors, uncertainties, columns)
    return measure


def _likelihood(
    measure: ImageMeasure,
    view: Maps,
    reading: Reading,
    pose1: Tensor,
    used: Tensor,
    metres: float,
    thin: bool,
) -> None:
    if reading.nll is None:
        return
    if reading.depth is not None:
        truth = view["depthmap"].float()
    else:
        truth = geotrf(inv(pose1.float()), view["pts3d"].float()) / metres
    # A density of points is one over three axes; for families about depth ``metres`` is 1.
    nll = reading.nll(truth)[0].flatten()[used].double() + 3 * math.log(metres)
    finite = nll.isfinite()
    measure.nll = float(nll[finite].sum()), int(finite.sum())
    measure.counts["bad_likelihood"] = int((~finite).sum())
    if reading.level is not None:
        mask = torch.zeros(view["valid_mask"].shape, dtype=torch.bool, device=used.device)
        mask.view(-1)[used[used % STREAMED_LEVELS == 0] if thin else used] = True
        levels = reading.level(truth, mask)
        levels = levels[np.isfinite(levels)]
        places = np.minimum((levels * LEVELS).astype(int), LEVELS - 1)
        measure.levels = np.bincount(places, minlength=LEVELS)


def _rank(
    measure: ImageMeasure,
    errors: dict[str, np.ndarray],
    uncertainties: dict[str, np.ndarray],
    columns: Columns | None,
) -> None:
    if columns is not None:
        named = {**errors, **uncertainties}
        measure.pixels = {name: columns.ordered(values) for name, values in named.items()}
        measure.numbers = {
            (target, by): columns.numbers(measure.pixels[target], measure.pixels[by])
            for target in errors
            for by in uncertainties
        }
        return
    for target, error in errors.items():
        oracle = Sparse.ranking(error, error)
        least = Curve.of(oracle.counts, oracle.sums).area
        measure.sketches[target, "oracle"] = (oracle,)
        for by, uncertainty in uncertainties.items():
            ranked, joint = Sparse.ranking(uncertainty, error), Sparse.joint(uncertainty, error)
            measure.sketches[target, by] = ranked, joint
            area = Curve.of(ranked.counts, ranked.sums).area
            measure.numbers[target, by] = {
                "aurc": area,
                "ause": area - least,
                "rho": rank_correlation(joint.bins, joint.counts)[0],
            }


def _numpy(values: Tensor, places: Tensor) -> np.ndarray:
    """Those of a map (H, W) at flat ``places`` (n,), float32."""
    return values.flatten().float().index_select(0, places).cpu().numpy()
