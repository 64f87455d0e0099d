"""Errors of estimated poses, recalls at the usual thresholds, and files of results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import inv
from mast3r.visloc.scene import Query

# (metres, degrees) within both of which a query counts as localised.
THRESHOLDS = ((0.1, 1.0), (0.25, 2.0), (1.0, 5.0))
ALL = "all"


@dataclass(frozen=True)
class PoseError:
    """Distance of the camera centres in scene units (metres) and angle in degrees.

    Both infinite where the query could not be localised.
    """

    position: float
    rotation: float

    def within(self, position: float, rotation: float) -> bool:
        return self.position <= position and self.rotation <= rotation


@dataclass(frozen=True)
class Recalls:
    """Of a group of queries, those that failed counted as infinitely wrong.

    Attributes:
        group: its name.
        queries: whose truth is known.
        localised: of these, those with a pose.
        position: median error in metres, infinite where more than half failed.
        rotation: median error in degrees.
        recalls: part of the queries in [0, 1] within each of ``THRESHOLDS``.
    """

    group: str
    queries: int
    localised: int
    position: float
    rotation: float
    recalls: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        named = {
            f"{metres:g}m_{degrees:g}deg": recall
            for (metres, degrees), recall in zip(THRESHOLDS, self.recalls, strict=True)
        }
        return {
            "queries": self.queries,
            "localised": self.localised,
            "median_position_m": finite_or_none(self.position),
            "median_rotation_deg": finite_or_none(self.rotation),
            "recall": named,
        }


def pose_error(pose: np.ndarray | None, truth: np.ndarray) -> PoseError:
    """Error of a camera-to-world pose (4, 4)."""
    if pose is None:
        return PoseError(np.inf, np.inf)
    turn = Rotation.from_matrix(pose[:3, :3].T @ truth[:3, :3]).magnitude()
    return PoseError(float(np.linalg.norm(pose[:3, 3] - truth[:3, 3])), float(np.degrees(turn)))


def pose_deviation(pose: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Error (6,) as ``mast3r.visloc.pnp.AbsolutePose.covariance`` states it: truth from pose."""
    turn = Rotation.from_matrix(truth[:3, :3] @ pose[:3, :3].T).as_rotvec()
    return np.concatenate([turn, truth[:3, 3] - pose[:3, 3]])


def recalls(queries: Sequence[Query], errors: Mapping[str, PoseError]) -> list[Recalls]:
    """One row for each group, in order of appearance, and where there are several one for all.

    Args:
        queries: those without truth are left out.
        errors: by the queries' names.
    """
    known = [query for query in queries if query.pose is not None]
    groups: dict[str, list[PoseError]] = {}
    for query in known:
        groups.setdefault(query.group, []).append(errors[query.name])
    rows = [_recalls(name or ALL, members) for name, members in groups.items()]
    if len(rows) > 1:
        rows.append(_recalls(ALL, [errors[query.name] for query in known]))
    return rows


def markdown(rows: Sequence[Recalls]) -> str:
    """The table of recalls."""
    names = [f"{metres:g} m, {degrees:g}°" for metres, degrees in THRESHOLDS]
    lines = [
        "| | queries | localised | median (m) | median (°) | " + " | ".join(names) + " |",
        "|---" * (5 + len(names)) + "|",
    ]
    for row in rows:
        medians = (
            f"{value:{spec}}" if math.isfinite(value) else "-"
            for value, spec in ((row.position, ".3f"), (row.rotation, ".2f"))
        )
        shares = (f"{100 * recall:.1f}%" for recall in row.recalls)
        cells = (row.group, str(row.queries), str(row.localised), *medians, *shares)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_results(
    path: str | Path,
    poses: Mapping[str, np.ndarray | None],
    result_name: Mapping[str, str] | None = None,
) -> Path:
    """Poses as visuallocalization.net takes them: ``name qw qx qy qz tx ty tz``, world-to-camera.

    Args:
        poses: (4, 4) camera-to-world by the queries' names; None, which failed, get no line.
        result_name: what the server calls a query, where that is not its name.
    """
    path = Path(path)
    lines = []
    for name, pose in poses.items():
        if pose is not None:
            world_to_camera = inv(pose)
            turn = Rotation.from_matrix(world_to_camera[:3, :3])
            numbers = (*turn.as_quat(scalar_first=True), *world_to_camera[:3, 3])
            shown = (result_name or {}).get(name, name)
            lines.append(f"{shown} {' '.join(f'{number:.9g}' for number in numbers)}\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines))
    return path


def finite_or_none(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return float(value) if math.isfinite(value) else None


def _recalls(group: str, errors: Sequence[PoseError]) -> Recalls:
    return Recalls(
        group=group,
        queries=len(errors),
        localised=sum(math.isfinite(error.position) for error in errors),
        position=_median([error.position for error in errors]),
        rotation=_median([error.rotation for error in errors]),
        recalls=tuple(
            sum(error.within(*threshold) for error in errors) / len(errors)
            for threshold in THRESHOLDS
        ),
    )


def _median(values: Sequence[float]) -> float:
    # Of an even number the mean of two, one of which may be infinite.
    return float(np.median(values))
