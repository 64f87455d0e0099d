"""The report of ``dust3r.datasets.inspect`` in text and as a page with pictures."""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes

from dust3r.datasets.inspect import Inspection, Part, SeenPair, SeenView
from dust3r.evaluation.page import Panel, Section, document, png_bytes
from dust3r.evaluation.report import table
from dust3r.utils.geometry import inv
from dust3r.utils.plots import Block, Chart, Map, log_ticks, sheet
from dust3r.utils.reprojection import AS_GIVEN, carried_colours, clean

_POINTS = 7
_SIDE = 420
_INCHES = 3.6
_DOT, _LINE = 4, 1
_FADE = 0.45


def text(found: Inspection) -> str:
    """Counts, a row for each data set, and what looks wrong."""
    lines = [
        found.description,
        f"{found.samples} pairs an epoch at {found.sizes}",
        "",
        _rows(found),
    ]
    warnings = found.warnings()
    lines += ["", *(f"warning: {line}" for line in warnings)] if warnings else []
    return "\n".join(lines)


def page(found: Inspection) -> str:
    """One HTML file that needs nothing else."""
    told = {
        "specification": found.spec,
        "data sets": found.description,
        "pairs an epoch": str(found.samples),
        "resolutions": found.sizes,
    }
    about = (
        "Read as training reads them. Overlap: share of pixels whose depth, carried into the other "
        "view, agrees with what is there within 5%, the smaller of both directions. Error: median "
        "difference of carried and measured depth."
    )
    pairs = [Panel("", _caption(pair), png_bytes(sheet([_pair(pair)]))) for pair in found.shown]
    sections = [
        Section("Counts", about, found.warnings(), [("", _rows(found))], _histograms(found)),
        Section(
            "Pairs",
            "Dots are pixels of the first view that have a depth; where depth and cameras carry "
            "them, they lie in the second on their epipolar lines, and on the same things. On the "
            "right the second view's colours as the first sees them: they continue its edges where "
            "all is right. Grey is not seen by it.",
            panels=pairs,
        ),
    ]
    return document("Data set", told, sections)


def _rows(found: Inspection) -> str:
    header = (
        "data set", "pairs read", "images", "valid pixels", "median depth",
        "median overlap", "depth error", "ms a pair",
    )  # fmt: skip
    return table(header, [_row(part) for part in found.parts.values()])


def _row(part: Part) -> list[str]:
    sizes = ", ".join(f"{width}x{height}" for width, height in sorted(part.sizes))
    unit = " m" if part.metric else ""
    return [
        part.name,
        str(len(part.overlaps)),
        sizes,
        f"{np.mean(part.valid):.0%}",
        f"{part.median_depth:.3g}{unit}",
        f"{np.median(part.overlaps):.2f}",
        f"{part.median_error:.2%}" if part.errors else "-",
        f"{1000 * np.median(part.seconds):.0f}",
    ]


def _histograms(found: Inspection) -> bytes | None:
    parts = list(found.parts.values())
    if not parts:
        return None
    charts = [
        Chart("depth (logarithmic)", lambda axes: _depth_histogram(axes, parts)),
        Chart("overlap of pairs", lambda axes: _overlap_histogram(axes, parts)),
        Chart("carried depths that agree", lambda axes: _conventions(axes, parts)),
    ]
    return png_bytes(sheet([Block([charts], (_INCHES, 0.75 * _INCHES))]))


def _depth_histogram(axes: Axes, parts: Sequence[Part]) -> None:
    depths = [np.concatenate(part.depths) for part in parts]
    low, high = np.percentile(np.concatenate(depths), [0.1, 99.9])
    bins = np.geomspace(low, max(high, 1.001 * low), 50)
    for part, values in zip(parts, depths, strict=True):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, histtype="step", lw=1.4, label=part.name)
    ticks = log_ticks(low, max(high, 1.001 * low))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    unit = "m" if all(part.metric for part in parts) else "m, or the data set's unit"
    axes.set_xlabel(f"depth [{unit}]", fontsize=7.5)
    axes.set_ylabel("share of pixels", fontsize=7.5, labelpad=1)
    axes.legend(fontsize=6.5)


def _overlap_histogram(axes: Axes, parts: Sequence[Part]) -> None:
    for part in parts:
        weights = np.full(len(part.overlaps), 1 / len(part.overlaps))
        bins = np.linspace(0, 1, 21)
        axes.hist(part.overlaps, bins, weights=weights, histtype="step", lw=1.4, label=part.name)
    axes.set_xlabel("overlap", fontsize=7.5)
    axes.set_ylabel("share of pairs", fontsize=7.5, labelpad=1)


def _conventions(axes: Axes, parts: Sequence[Part]) -> None:
    names = list(parts[0].agreement)
    places = np.arange(len(names))
    width = 0.8 / len(parts)
    for n, part in enumerate(parts):
        shares = [float(np.mean(part.agreement[name])) for name in names]
        axes.barh(places + (n - (len(parts) - 1) / 2) * width, shares, width, label=part.name)
    short = [name if name == AS_GIVEN else name.split(" (")[0] for name in names]
    # Long names stand inside the axes, over their bars.
    for place, name in zip(places, short, strict=True):
        axes.text(0.02, place, name, fontsize=7, va="center")
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of pixels, if conventions were", fontsize=7.5)


def _caption(pair: SeenPair) -> str:
    return (
        f"pair {pair.index}: {pair.first.label} and {pair.second.label}, overlap {pair.overlap:.2f}"
    )


def _pair(pair: SeenPair) -> Block:
    first, second = pair.first, pair.second
    pixels, colours = _points(first)
    dots, lines = _enlarged(first.rgb), _enlarged(second.rgb)
    by = dots.shape[1] / first.rgb.shape[1], lines.shape[1] / second.rgb.shape[1]
    fundamental = _fundamental(first, second)
    for pixel, colour in zip(pixels, colours, strict=True):
        cv2.circle(dots, _at(pixel, by[0]), _DOT, colour, -1, cv2.LINE_AA)
        _draw_line(lines, fundamental @ np.append(pixel, 1), by[1], colour)
    for pixel, colour in zip(_carried(pixels, first, second), colours, strict=True):
        if np.isfinite(pixel).all():
            cv2.circle(lines, _at(pixel, by[1]), _DOT, colour, -1, cv2.LINE_AA)
    carried, seen = carried_colours(*first.camera, *second.camera, second.rgb)
    grey = 50 + _FADE * first.rgb.mean(axis=2, keepdims=True)
    merged = _enlarged(np.where(seen[..., None], carried, grey).astype(np.uint8))
    aspect = max(one.shape[0] / one.shape[1] for one in (dots, lines))
    row = [
        Map("first view", dots / 255),
        Map("second view, epipolar lines", lines / 255),
        Map("second's colours in the first", merged / 255),
    ]
    return Block([row], (_INCHES, _INCHES * aspect))


def _points(view: SeenView) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Pixels (K, 2) with a depth, spread over the image, and a colour for each."""
    height, width = view.depth.shape
    places = np.stack(
        np.meshgrid(
            np.linspace(0.1, 0.9, _POINTS) * (width - 1),
            np.linspace(0.1, 0.9, _POINTS) * (height - 1),
        ),
        -1,
    )
    places = places.reshape(-1, 2).round().astype(int)
    places = places[view.depth[places[:, 1], places[:, 0]] > 0][::2]
    hues = (np.arange(len(places)) * 180 // max(len(places), 1)).astype(np.uint8)
    hsv = np.stack([hues, np.full_like(hues, 230), np.full_like(hues, 255)], -1)
    colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if len(places) else np.zeros((0, 3))
    return places.astype(np.float64), [tuple(int(c) for c in colour) for colour in colours]


def _carried(pixels: np.ndarray, first: SeenView, second: SeenView) -> np.ndarray:
    """Where pixels (K, 2) of the first view lie in the second, NaN where behind it."""
    columns, rows = pixels.T.astype(int)
    depth = clean(first.depth)[rows, columns]
    rays = np.linalg.inv(first.intrinsics) @ np.stack([columns, rows, np.ones(len(rows))])
    relative = inv(second.pose) @ first.pose
    moved = second.intrinsics @ (relative[:3, :3] @ (rays * depth) + relative[:3, 3:])
    return np.where(moved[2] > 0, moved[:2] / np.where(moved[2] > 0, moved[2], 1), np.nan).T


def _fundamental(first: SeenView, second: SeenView) -> np.ndarray:
    """(3, 3): a pixel of the first view lies in the second on the line of its product."""
    relative = inv(second.pose) @ first.pose
    x, y, z = relative[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    back = np.linalg.inv(first.intrinsics)
    return np.linalg.inv(second.intrinsics).T @ cross @ relative[:3, :3] @ back


def _enlarged(image: np.ndarray) -> np.ndarray:
    scale = _SIDE / max(image.shape[:2])
    return cv2.resize(np.ascontiguousarray(image), None, fx=scale, fy=scale)


def _at(pixel: np.ndarray, scale: float) -> tuple[int, int]:
    # Far points are brought to where integers still hold them.
    x, y = ((pixel + 0.5) * scale - 0.5).clip(-1e6, 1e6)
    return round(x), round(y)


def _draw_line(
    image: np.ndarray, line: np.ndarray, scale: float, colour: tuple[int, int, int]
) -> None:
    a, b, c = line
    height, width = image.shape[:2]
    if abs(a) < 1e-12 and abs(b) < 1e-12:
        return
    if abs(b) >= abs(a):
        x = np.array([0.0, width / scale])
        ends = np.stack([x, -(a * x + c) / b], -1)
    else:
        y = np.array([0.0, height / scale])
        ends = np.stack([-(b * y + c) / a, y], -1)
    cv2.line(image, _at(ends[0], scale), _at(ends[1], scale), colour, _LINE, cv2.LINE_AA)
