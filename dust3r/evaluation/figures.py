"""Curves of rankings and of calibration, and panels of single images."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dust3r.evaluation.levels import LEVELS
from dust3r.evaluation.measure import OWN, depth_errors, point_errors
from dust3r.evaluation.methods import DEPTH, POINT, Method
from dust3r.evaluation.sketch import COVERAGES
from dust3r.uncertainty.estimates import inverse_confidence
from dust3r.utils.plots import Block, Chart, Colours, Map, sheet

Found = Mapping[str, Any]

CHART_INCHES, PANEL_INCHES, WIDEST = (4.2, 3.2), 2.2, 1.5
# Labels that still leave room for curves; more of them go beside a chart, which is wider for it.
_INSIDE, _WIDER, _BESIDE = 6, 1.35, 0.72
_TITLES = {POINT: "points", DEPTH: "own depth"}


def curves_figure(found: Sequence[Found], title: str = "") -> Figure:
    """Risk over coverage and sparsification error by target, and reliability where it is stated.

    Args:
        found: what ``MethodMetrics.compute`` gave of the methods on one benchmark.
    """
    colours = _colours(found)
    rows = []
    for target, name in _TITLES.items():
        ranked = [one for one in found if target in one["targets"]]
        if ranked:
            rows.append(
                [
                    Chart(f"{name}: risk and coverage", partial(_risk, ranked, target, colours)),
                    Chart(f"{name}: sparsification", partial(_sparsity, ranked, target, colours)),
                ]
            )
    stated = [one for one in found if "reliability" in one]
    if stated:
        rows.append(
            [
                Chart("reliability", partial(_reliability, stated, colours)),
                Chart("reliability: found less stated", partial(_excess, stated, colours)),
            ]
        )
    width, height = CHART_INCHES
    return sheet([Block(rows, (width if len(found) < _INSIDE else _WIDER * width, height))], title)


def coverage_figure(found: Sequence[Found], levels: np.ndarray, title: str = "") -> Figure:
    """Reliability diagrams of methods on one data set, as stated and calibrated.

    Args:
        found: with ``method`` and ``kinds``: name -> ``curve``, the shares held at ``levels``.
    """
    charts = [
        Chart(f"{one['method']}: reliability", partial(_coverage, one["kinds"], levels))
        for one in found
    ]
    return sheet(
        [Block([charts[n : n + 3] for n in range(0, len(charts), 3)], CHART_INCHES)], title
    )


def image_figure(
    view: Mapping[str, Any],
    prediction: Mapping[str, Tensor],
    method: Method,
    alignment: str,
    title: str = "",
) -> Figure:
    """One image, a batch of one: RGB, true depth, point error and uncertainty.

    A second row, of families about depth: their own depth and its error, and 1 / confidence.

    What has no truth, or is not finite, is grey.
    """
    height, width = (int(side) for side in view["true_shape"][0])
    transposed = (height, width) != tuple(view["depthmap"].shape[1:])

    def upright(values: Tensor) -> np.ndarray:
        array = values.detach().float().cpu().numpy()
        array = array.swapaxes(0, 1) if transposed else array
        return np.where(np.isfinite(array), array, np.nan)

    reading = method.read(prediction)
    geometry = point_errors(view, prediction, alignment)
    valid = upright(geometry.valid) > 0
    depth = np.where(valid, upright(view["depthmap"][0]), np.nan)
    errors = {POINT: upright(geometry.point)}
    if DEPTH in method.targets:
        errors[DEPTH] = upright(depth_errors(view, reading))
    shared = Colours.from_zero(errors.values())
    total = upright(reading.total[0])
    image = (upright(view["img"][0].permute(1, 2, 0)) / 2 + 0.5).clip(0, 1)
    unit = f" ({reading.unit})" if reading.unit else ""
    own = None if reading.depth is None else upright(reading.depth[0])
    depths = Colours.linear([depth] if own is None else [depth, own])
    uncertainty = Map(f"{method.label}: uncertainty{unit}", total, Colours.logarithmic([total]))
    rows = [
        [
            Map("image", image),
            Map("true depth (m)", depth, depths),
            Map("point error (m)", errors[POINT], shared),
            uncertainty,
        ]
    ]
    if own is not None:
        doubt = upright(inverse_confidence(prediction)[0]) if "conf" in prediction else None
        more = [] if doubt is None else [Map("1 / conf", doubt, Colours.logarithmic([doubt]))]
        of_depth = Map("own depth's error (m)", errors[DEPTH], shared)
        label = f"{method.label}: depth (m)"
        rows.append([Map(label, own, depths), of_depth, *more])
    aspect = width / height
    size = PANEL_INCHES * min(aspect, WIDEST), PANEL_INCHES * min(1.0, WIDEST / aspect)
    return sheet([Block(rows, size)], title)


def _colours(found: Sequence[Found]) -> dict[str, Any]:
    palette = matplotlib.colormaps["tab10" if len(found) <= 10 else "tab20"].colors
    return {one["method"]: palette[n % len(palette)] for n, one in enumerate(found)}


def _risk(found: Sequence[Found], target: str, colours: Mapping[str, Any], axes: Axes) -> None:
    for one in found:
        ranking, colour = one["targets"][target][OWN], colours[one["method"]]
        label = f"{one['method']}: AURC {ranking['aurc']:.3g}"
        axes.plot(COVERAGES, ranking["risk"], color=colour, lw=1.3, label=label)
        axes.plot(COVERAGES, ranking["oracle_risk"], ":", color=colour, lw=1)
    axes.plot([], [], "k:", lw=1, label="oracle")
    _finish(axes, "coverage, most certain first", "mean error (m)")
    axes.set(xlim=(0, 1), ylim=(0, None))


def _sparsity(found: Sequence[Found], target: str, colours: Mapping[str, Any], axes: Axes) -> None:
    for one in found:
        ranking = one["targets"][target][OWN]
        error = np.asarray(ranking["risk"]) - np.asarray(ranking["oracle_risk"])
        label = f"{one['method']}: AUSE {ranking['ause']:.3g}"
        axes.plot(1 - COVERAGES, error, color=colours[one["method"]], lw=1.3, label=label)
    _finish(axes, "share of pixels removed", "sparsification error (m)")
    axes.set(xlim=(0, 1), ylim=(0, None))


def _reliability(found: Sequence[Found], colours: Mapping[str, Any], axes: Axes) -> None:
    stated = np.arange(LEVELS + 1) / LEVELS
    axes.plot([0, 1], [0, 1], "k--", lw=0.8, label="calibrated")
    for one in found:
        label = f"{one['method']}: error {one['calibration_error']:.3g}"
        share = np.concatenate([[0], one["reliability"]])
        axes.plot(stated, share, color=colours[one["method"]], lw=1.3, label=label)
    _finish(axes, "stated probability of the region", "share of truths inside")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _excess(found: Sequence[Found], colours: Mapping[str, Any], axes: Axes) -> None:
    stated = np.arange(LEVELS + 1) / LEVELS
    axes.axhline(0, color="k", ls="--", lw=0.8)
    for one in found:
        share = np.concatenate([[0], one["reliability"]])
        axes.plot(stated, share - stated, color=colours[one["method"]], lw=1.3, label=one["method"])
    _finish(axes, "stated probability of the region", "above 0: cautious, below: overconfident")
    axes.set_xlim(0, 1)


def _coverage(kinds: Mapping[str, Found], levels: np.ndarray, axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], "k--", lw=0.8)
    palette = matplotlib.colormaps["tab10"].colors
    for number, (kind, one) in enumerate(kinds.items()):
        # Zero at level zero is no measurement, but where every curve begins.
        shares, stated = np.append(0, one["curve"]), np.append(0, levels)
        label = f"{kind}: error {one['calibration_error']:.3g}"
        axes.plot(stated, shares, color=palette[number], lw=1.3, label=label)
    _finish(axes, "share to be held", "share of truths inside, mean of images")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _finish(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=7.5)
    axes.set_ylabel(up, fontsize=7.5, labelpad=1)
    style: dict[str, Any] = {"fontsize": 6.5, "borderpad": 0.3, "handlelength": 1.6}
    if len(axes.get_legend_handles_labels()[1]) > _INSIDE:
        place = axes.get_position()
        axes.set_position((place.x0, place.y0, _BESIDE * place.width, place.height))
        style |= {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    axes.legend(**style)
    axes.grid(alpha=0.25, lw=0.5)
