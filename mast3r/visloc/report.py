"""Files that a localisation run leaves: poses, numbers of every query, a table, a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from dust3r.utils.files import atomic_path
from dust3r.utils.plots import DPI, save_png
from mast3r.visloc.localise import Localisation
from mast3r.visloc.metrics import (
    THRESHOLDS,
    PoseError,
    finite_or_none,
    markdown,
    pose_deviation,
    pose_error,
    recalls,
    write_results,
)
from mast3r.visloc.scene import LocalisationScene, Query

# Median of a chi-square variable of six degrees of freedom, that of an honest covariance.
HONEST_MEDIAN = 5.35

_COVARIANCE = (
    "(6, 6) of rotation vector (radians) and camera centre (scene units) in the world's axes: "
    "true rotation = exp([w]x) R, true centre = c + v"
)
_LISTED = 50
_ESTIMATE, _FAILED = "tab:blue", "tab:red"


def write_report(
    folder: str | Path,
    scene: LocalisationScene,
    results: Sequence[Localisation],
    settings: Mapping[str, Any],
) -> list[Path]:
    """``poses.txt``, ``localisation.json``, ``report.md``, ``localisation.png``; their paths.

    Args:
        results: one for each query, in their order.
        settings: what to say of how they were made, for JSON.
    """
    folder = Path(folder)
    errors = query_errors(scene.queries, results)
    poses = {result.name: result.pose for result in results}
    return [
        write_results(folder / "poses.txt", poses, scene.result_name),
        _write_json(folder / "localisation.json", scene, results, errors, settings),
        _write_text(folder / "report.md", _page(scene, results, errors, settings)),
        draw(folder / "localisation.png", scene, results, errors),
    ]


def write_overview(
    folder: str | Path, done: Sequence[tuple[LocalisationScene, Sequence[Localisation]]]
) -> Path:
    """``report.md`` of several scenes, a row each and one for all; its path."""
    queries: list[Query] = []
    errors: dict[str, PoseError] = {}
    for scene, results in done:
        # Names are unique within a scene alone.
        for name, error in query_errors(scene.queries, results).items():
            errors[f"{scene.name}/{name}"] = error
        queries += [
            replace(query, name=f"{scene.name}/{query.name}", group=scene.name)
            for query in scene.queries
        ]
    table = markdown(recalls(queries, errors))
    text = f"# Localisation in {len(done)} scenes\n\n{table}\n"
    return _write_text(Path(folder) / "report.md", text)


def query_errors(queries: Sequence[Query], results: Sequence[Localisation]) -> dict[str, PoseError]:
    """Errors of the queries whose truth is known, by name."""
    return {
        query.name: pose_error(result.pose, query.pose)
        for query, result in zip(queries, results, strict=True)
        if query.pose is not None
    }


def normalised_error(queries: Sequence[Query], results: Sequence[Localisation]) -> float | None:
    """Median squared error in units of the covariance; ``HONEST_MEDIAN`` where that is honest.

    None where no query has both a truth and a pose.
    """
    squares = []
    for query, result in zip(queries, results, strict=True):
        if query.pose is not None and result.pose is not None:
            deviation = pose_deviation(result.pose, query.pose)
            squares.append(deviation @ np.linalg.solve(result.covariance, deviation))
    return float(np.median(squares)) if squares else None


def draw(
    path: str | Path,
    scene: LocalisationScene,
    results: Sequence[Localisation],
    errors: Mapping[str, PoseError],
) -> Path:
    """Write a PNG: share of the queries within an error, and all cameras from above."""
    path = Path(path)
    figure = Figure(figsize=(1300 / DPI, 720 / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, width_ratios=(1, 1.6), left=0.06, right=0.985, bottom=0.09, top=0.9, hspace=0.4
    )
    units = (("position", "m", 0), ("rotation", "°", 1))
    for row, (name, unit, part) in enumerate(units):
        limits = [threshold[part] for threshold in THRESHOLDS]
        values = np.array([getattr(error, name) for error in errors.values()])
        axes = figure.add_subplot(grid[row, 0])
        _cumulative(axes, values, limits, f"{name} error ({unit})")
    _from_above(figure.add_subplot(grid[:, 1]), scene, results, errors)
    lost = sum(result.pose is None for result in results)
    title = f"{scene.name}: {len(results) - lost} of {len(results)} queries localised"
    figure.suptitle(title, fontsize=11, parse_math=False)
    save_png(figure, path)
    return path


def _cumulative(axes: Axes, errors: np.ndarray, limits: Sequence[float], label: str) -> None:
    low, high = limits[0] / 20, limits[-1] * 4
    axes.set(xscale="log", xlim=(low, high), ylim=(0, 102))
    axes.set_xlabel(label, fontsize=8)
    axes.set_ylabel("queries within (%)", fontsize=8)
    axes.set_xticks(limits, minor=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.grid(color="0.88", lw=0.6)
    if not len(errors):
        axes.text(0.5, 0.5, "no truth is known", ha="center", transform=axes.transAxes, fontsize=8)
        return
    ordered = np.sort(errors).clip(low, None)
    shares = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
    found = np.isfinite(ordered)
    x, y = ordered[found], shares[found]
    reached = y[-1] if len(y) else 0.0
    axes.step(np.r_[low, x, high], np.r_[0.0, y, reached], where="post", color=_ESTIMATE)


def _from_above(
    axes: Axes,
    scene: LocalisationScene,
    results: Sequence[Localisation],
    errors: Mapping[str, PoseError],
) -> None:
    """Cameras on the plane at right angles to the mean downward direction of the map's images."""
    poses = np.stack([image.pose for image in scene.images])
    plane = _ground(poses)
    known = [(query, result) for query, result in zip(scene.queries, results, strict=True)]
    centres = poses[:, :3, 3] @ plane
    size = np.ptp(centres, axis=0).max() or 1.0
    axes.scatter(*centres.T, s=9, c="0.7", linewidths=0, label=f"map ({len(poses)})")
    truths = np.array([q.pose[:3, 3] for q, _ in known if q.pose is not None]).reshape(-1, 3)
    if len(truths):
        axes.scatter(*(truths @ plane).T, s=16, facecolors="none", edgecolors="k", lw=0.7)
        axes.scatter([], [], s=16, facecolors="none", edgecolors="k", lw=0.7, label="truth")
    found = [(q, r) for q, r in known if r.pose is not None]
    if found:
        cameras = np.stack([r.pose for _, r in found])
        ends = cameras[:, :3, 3] @ plane
        forward = cameras[:, :3, 2] @ plane * size * 0.025
        looks = np.stack([ends, ends + forward], 1)
        axes.add_collection(LineCollection(looks, colors=_ESTIMATE, lw=0.8))
        axes.scatter(*ends.T, s=7, c=_ESTIMATE, linewidths=0, label=f"estimate ({len(found)})")
        gaps = [
            np.stack([q.pose[:3, 3], r.pose[:3, 3]]) @ plane for q, r in found if q.pose is not None
        ]
        axes.add_collection(LineCollection(gaps, colors=_FAILED, lw=0.7))
    lost = [q for q, r in known if r.pose is None]
    where = np.array([q.pose[:3, 3] for q in lost if q.pose is not None]).reshape(-1, 3) @ plane
    if lost:
        axes.scatter(*where.T, s=36, marker="x", c=_FAILED, lw=1.2, label=f"failed ({len(lost)})")
    # One wild estimate must not shrink the rest to a dot.
    shown = np.concatenate([centres, truths @ plane])
    low, high = shown.min(0) - 0.1 * size, shown.max(0) + 0.1 * size
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set_aspect("equal", adjustable="box")
    axes.set_title("from above (scene units; red joins estimate and truth)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", lw=0.6)
    axes.legend(fontsize=8, loc="best", framealpha=0.8)


def _ground(poses: np.ndarray) -> np.ndarray:
    """Two axes (3, 2) of the ground: photographs are mostly taken upright."""
    down = poses[:, :3, 1].sum(0)
    length = np.linalg.norm(down)
    down = down / length if length > 1e-6 else np.array([0.0, 1.0, 0.0])
    centred = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
    flat = centred - np.outer(centred @ down, down)
    across = np.linalg.svd(flat, full_matrices=False)[2][0] if len(flat) > 1 else np.zeros(3)
    across = across - (across @ down) * down
    if np.linalg.norm(across) < 0.5:
        across = np.cross(down, np.eye(3)[np.abs(down).argmin()])
    across = across / np.linalg.norm(across)
    return np.stack([across, np.cross(across, down)], 1)


def _page(
    scene: LocalisationScene,
    results: Sequence[Localisation],
    errors: Mapping[str, PoseError],
    settings: Mapping[str, Any],
) -> str:
    lines = [f"# Localisation in {scene.name}", ""]
    lines += [f"{len(scene.images)} map images, {len(results)} queries.", ""]
    lines += [f"- {name}: {value}" for name, value in settings.items()] + [""]
    if errors:
        lines += [
            markdown(recalls(scene.queries, errors)),
            "",
            "Queries that failed count as infinitely wrong.",
            "",
        ]
        normalised = normalised_error(scene.queries, results)
        if normalised is not None:
            lines += [
                f"Median squared error in units of the covariance: {normalised:.1f}; "
                f"{HONEST_MEDIAN} were it honest about everything.",
                "",
            ]
    if results:
        seconds = np.median([result.seconds for result in results])
        lines += [f"{seconds:.2f} s per query (median).", ""]
    lost = [result for result in results if result.pose is None]
    if lost:
        lines += [f"## {len(lost)} failed", ""]
        lines += [f"- {result.name}: {result.reason}" for result in lost[:_LISTED]]
        lines += [f"- and {len(lost) - _LISTED} more, see localisation.json"] * (
            len(lost) > _LISTED
        )
    return "\n".join(lines).rstrip() + "\n"


def _write_json(
    path: Path,
    scene: LocalisationScene,
    results: Sequence[Localisation],
    errors: Mapping[str, PoseError],
    settings: Mapping[str, Any],
) -> Path:
    content = {
        "scene": scene.name,
        "settings": dict(settings),
        "map_images": len(scene.images),
        "covariance": _COVARIANCE,
        "normalised_error_median": normalised_error(scene.queries, results),
        "summary": {row.group: row.as_json() for row in recalls(scene.queries, errors)},
        "queries": [_entry(result, errors.get(result.name)) for result in results],
    }
    return _write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _entry(result: Localisation, error: PoseError | None) -> dict[str, Any]:
    position, rotation = result.standard_deviations() or (None, None)
    entry = {
        "name": result.name,
        "pose": None if result.pose is None else result.pose.tolist(),
        "reason": result.reason,
        "inliers": result.inliers,
        "matches": result.matches,
        "std_position": position,
        "std_rotation_deg": rotation,
        "covariance": None if result.covariance is None else result.covariance.tolist(),
        "seconds": round(result.seconds, 4),
        "images": list(result.images),
    }
    if error is not None:
        entry["error_position"] = finite_or_none(error.position)
        entry["error_rotation_deg"] = finite_or_none(error.rotation)
    return entry


def _write_text(path: Path, text: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
