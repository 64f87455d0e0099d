"""Pictures of what DELTAS does with a sequence, and curves over the gap between frames."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deltas.epipolar import carry_points
from deltas.evaluation.measure import Batch, true_depth
from deltas.model import DeltasPrediction, anchor_to_views
from dust3r.utils.image import rgb
from dust3r.utils.plots import DPI, Block, Chart, Colours, Map, sheet

FOLLOWED = 8
PANEL_INCHES = 2.9
CHART_INCHES = (4.2, 3.2)

_SCORED, _RANDOM, _EDGE = (255, 150, 0), (40, 150, 255), (0, 0, 0)
# A wild prediction would leave the truth with one colour.
_WIDEST = 1.5
# OpenCV's fractional bits of coordinates.
_SHIFT = 4
_TAB10 = [tuple(round(255 * part) for part in rgb) for rgb in matplotlib.colormaps["tab10"].colors]
# Without the grey, which an image hides.
_COLOURS = _TAB10[:7] + _TAB10[8:]


def sample_figure(
    batch: Batch,
    prediction: DeltasPrediction,
    depth_range: tuple[float, float],
    title: str = "",
) -> Figure:
    """All there is to see of one anchor.

    First the image with its interest points, then a few of them, a colour each, in the anchor and
    in its neighbours: the epipolar segment that was searched, a dot where it was found, a cross
    where it truly is. Below: sparse, dense and true depth, absolute error and, where the model
    states evidence, the standard deviation. What has no truth in the range is grey.

    Args:
        batch: one sample of ``deltas.data.sequences.Sequences``, collated, on the host.
        prediction: of this sample.
        depth_range: of the true depths that count, in metres.
    """
    truth = true_depth(batch, depth_range)[0]
    images = rgb(batch["img"][0])
    height, width = images.shape[1:3]
    shape = math.sqrt(width / height)
    panel = PANEL_INCHES * shape, PANEL_INCHES / shape
    canvases = [Canvas(image, panel) for image in images]
    points = prediction.points[0].numpy()
    chosen = followed(prediction)
    places = true_places(batch, points[chosen], truth)
    followed_in = Canvas(images[0], panel)
    for colour, number in zip(_COLOURS, chosen, strict=False):
        followed_in.dot(points[number], colour, 4)
    views = [followed_in, *canvases[1:]]
    for number, canvas in enumerate(views[1:]):
        _draw_matches(canvas, prediction, number, chosen, places[number])
    names = [name[0].rpartition("/")[2] for name in batch["label"]]
    titles = [f"{len(chosen)} points to follow"]
    titles += [f"{name}: found (dot), true (cross)" for name in names[1:]]
    rows = [
        [_interest_points(canvases[0], prediction)]
        + [Map(text, view.pixels) for text, view in zip(titles, views, strict=True)],
        depth_maps(batch, prediction, depth_range),
    ]
    return sheet([Block(rows, panel)], title)


def depth_maps(
    batch: Batch, prediction: DeltasPrediction, depth_range: tuple[float, float]
) -> list[Map]:
    """Sparse, dense and true depth, absolute error and stated deviation; as ``sample_figure``."""
    truth = true_depth(batch, depth_range)[0].numpy()
    dense = _finite(prediction.depth[0][0, 0])
    known = truth[np.isfinite(truth)]
    most = _WIDEST * known.max() if len(known) else np.inf
    depths = Colours.linear([truth, np.where((dense > 0) & (dense < most), dense, np.nan)])
    error = np.abs(dense - truth)
    errors = Colours.from_zero([error])
    valid = prediction.valid[0].numpy()
    maps = [
        Map(f"sparse depth (m), {valid.sum()} points", _sparse(prediction, truth.shape), depths),
        Map("dense depth (m)", dense, depths),
        Map("true depth (m)", truth, depths),
        Map("absolute error (m)", error, errors),
    ]
    if prediction.evidence is not None:
        sigma = _finite(prediction.evidence.total.sqrt()[0, 0])
        maps.append(Map("standard deviation (m)", sigma, Colours.logarithmic([sigma])))
    return maps


def followed(prediction: DeltasPrediction, number: int = FOLLOWED) -> list[int]:
    """A few points (of a batch of one), far apart, of the kind that shows most.

    Triangulated ones that were searched for in all views, else those of some views, else any; the
    best match first, then always the one farthest from all before.
    """
    seen = prediction.matches.segments.seen[0]
    valid = prediction.valid[0]
    kinds = (valid & seen.all(0), valid & seen.any(0), seen.any(0), torch.ones_like(valid))
    able = next((kind for kind in kinds if kind.sum() >= number), kinds[-1]).nonzero()[:, 0]
    points = prediction.points[0, able].double()
    first = int(prediction.confidence[0, able, 1:].sum(-1).argmax())
    chosen, distance = [first], (points - points[first]).norm(dim=-1)
    while len(chosen) < min(number, len(able)):
        chosen.append(int(distance.argmax()))
        distance = distance.minimum((points - points[chosen[-1]]).norm(dim=-1))
    return able[chosen].tolist()


def true_places(batch: Batch, points: np.ndarray, truth: Tensor) -> np.ndarray:
    """Pixels (V, K, 2) of the neighbours where points of the anchor are, NaN where not known.

    Args:
        batch: one sample, collated.
        points: (K, 2) pixels of the anchor.
        truth: (H, W) its depth, NaN where there is none.
    """
    x, y = points.astype(int).T
    intrinsics, to_views = batch["camera_intrinsics"], anchor_to_views(batch["camera_pose"])
    pixels, depth = torch.from_numpy(points).double()[None], truth[y, x].double()[None]
    _, places, z = carry_points(pixels, depth, to_views, intrinsics.double())
    return torch.where((z > 0)[..., None], places, torch.nan)[0].numpy()


def gap_figure(measured: Mapping[int, Mapping[str, Any]], title: str = "") -> Figure:
    """Errors, shares, parallax and, where it is stated, uncertainty over ``seq_gap``.

    Args:
        measured: by gap, what ``GapMeasures.compute`` gives.
    """
    gaps = list(measured)

    def chart(name: str, unit: str, curves: Mapping[str, str], **options: Any) -> Chart:
        values = {label: [one[key] for one in measured.values()] for key, label in curves.items()}
        return Chart(name, partial(_curves, gaps, values, unit, **options))

    charts = [
        chart(
            "relative error",
            "share of the true depth",
            {"abs_rel": "dense (abs_rel)", "point_abs_rel": "triangulated points (median)"},
        ),
        chart(
            "shares",
            "share",
            {"a1": "pixels within 25% (a1)", "triangulated": "points triangulated"},
            most=1.0,
        ),
        chart("geometry", "degrees", {"parallax": "mean parallax"}),
    ]
    if all("nll" in one for one in measured.values()):
        covered = [one["coverage"][90] for one in measured.values()]
        values = {"in the central 90%": covered, "stated": [0.9] * len(gaps)}
        charts += [
            chart("ranking by sigma", "m", {"aurc": "AURC", "ause": "AUSE"}),
            Chart("coverage", partial(_curves, gaps, values, "share of pixels", most=1.0)),
            chart("likelihood", "nats", {"nll": "NLL"}, least=None),
        ]
    rows = [charts[n : n + 3] for n in range(0, len(charts), 3)]
    return sheet([Block(rows, CHART_INCHES)], title)


class Canvas:
    """An image at the size that its panel has, so that what is drawn on it stays sharp."""

    def __init__(self, image: np.ndarray, panel: tuple[float, float]) -> None:
        size = tuple(round(side * DPI) for side in panel)
        self.scale = np.array(size) / image.shape[1::-1]
        how = cv2.INTER_CUBIC if self.scale.min() > 1 else cv2.INTER_AREA
        resized = cv2.resize(image.astype(np.float32), size, interpolation=how)
        self.pixels = (255 * resized.clip(0, 1)).round().astype(np.uint8)

    def dot(self, xy: np.ndarray, colour: Sequence[int], radius: float, edge: bool = True) -> None:
        if edge:
            self._circle(xy, _EDGE, radius + 1)
        self._circle(xy, colour, radius)

    def cross(self, xy: np.ndarray, colour: Sequence[int], reach: float) -> None:
        for drawn, width in ((_EDGE, 4), (colour, 2)):
            for step in ((reach, reach), (reach, -reach)):
                ends = (self._place(xy, np.multiply(side, step)) for side in (1, -1))
                cv2.line(self.pixels, *ends, drawn, width, cv2.LINE_AA, _SHIFT)

    def line(self, start: np.ndarray, end: np.ndarray, colour: Sequence[int]) -> None:
        ends = self._place(start), self._place(end)
        cv2.line(self.pixels, *ends, colour, 1, cv2.LINE_AA, _SHIFT)

    def _circle(self, xy: np.ndarray, colour: Sequence[int], radius: float) -> None:
        radius = round(radius * 2**_SHIFT)
        cv2.circle(self.pixels, self._place(xy), radius, colour, -1, cv2.LINE_AA, _SHIFT)

    def _place(self, xy: np.ndarray, moved: np.ndarray | float = 0.0) -> tuple[int, int]:
        """Of a pixel of the image; centres of pixels are at whole numbers on either grid."""
        place = (np.asarray(xy) + 0.5) * self.scale - 0.5 + moved
        # OpenCV takes 16-bit numbers; what is further out would not be seen.
        x, y = (place * 2**_SHIFT).round().clip(-(2**15), 2**15 - 1).astype(int).tolist()
        return x, y


def _interest_points(canvas: Canvas, prediction: DeltasPrediction) -> Map:
    points, scored = prediction.points[0].numpy(), prediction.scores[0].numpy() > 0
    for kind, colour in ((~scored, _RANDOM), (scored, _SCORED)):
        for xy in points[kind]:
            canvas.dot(xy, colour, 2.2, edge=False)
    return Map(f"{scored.sum()} by score (orange), {(~scored).sum()} random (blue)", canvas.pixels)


def _draw_matches(
    canvas: Canvas,
    prediction: DeltasPrediction,
    view: int,
    chosen: Sequence[int],
    true_places: np.ndarray,
) -> None:
    segments = prediction.matches.segments
    end = torch.ones(1, 1, 1)
    starts, ends = (segments.pixels(side * end, 0 * end)[0, view].numpy() for side in (-1, 1))
    found = prediction.matches.pixels[0, view].numpy()
    seen = segments.seen[0, view].numpy()
    for draw in ("line", "cross", "dot"):
        for colour, number, place in zip(_COLOURS, chosen, true_places, strict=False):
            if draw == "cross" and np.isfinite(place).all():
                canvas.cross(place, colour, 5)
            elif draw == "line" and seen[number]:
                canvas.line(starts[number], ends[number], colour)
            elif draw == "dot" and seen[number]:
                canvas.dot(found[number], colour, 4)


def _sparse(prediction: DeltasPrediction, shape: tuple[int, ...]) -> np.ndarray:
    """Triangulated z, each in a square of pixels large enough to be seen, NaN elsewhere."""
    height, width = shape
    side = max(1, round(height / 96))
    valid = prediction.valid[0]
    columns, rows = prediction.points[0, valid].long().numpy().T
    z = prediction.z[0, valid].numpy()
    sparse = np.full((height, width), np.nan, np.float32)
    for down in range(-side, side + 1):
        for across in range(-side, side + 1):
            row, column = (rows + down).clip(0, height - 1), (columns + across).clip(0, width - 1)
            sparse[row, column] = z
    return sparse


def _finite(values: Tensor) -> np.ndarray:
    array = values.float().numpy()
    return np.where(np.isfinite(array), array, np.nan)


def _curves(
    gaps: Sequence[int],
    values: Mapping[str, Sequence[float]],
    unit: str,
    axes: Axes,
    least: float | None = 0.0,
    most: float | None = None,
) -> None:
    for label, line in values.items():
        axes.plot(gaps, line, ".-", lw=1.3, label=label)
    axes.set_xticks(gaps, [str(gap) for gap in gaps])
    axes.set_xlabel("seq_gap", fontsize=7.5)
    axes.set_ylabel(unit, fontsize=7.5, labelpad=1)
    axes.set_ylim(bottom=least, top=most)
    axes.legend(fontsize=6.5, borderpad=0.3, handlelength=1.6)
    axes.grid(alpha=0.25, lw=0.5)
