"""How far estimated cameras are from the true ones, free of the world's frame and scale."""

from collections.abc import Sequence

import numpy as np
import roma
import torch
from torch import Tensor

# Of relative rotations and directions of translation that are missing: the worst there is.
WORST_DEGREES = 180.0
MAA_DEGREES = 30


def pose_errors(estimated: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors in degrees of relative rotations, and of the directions of relative translations.

    Of all N (N - 1) / 2 pairs of cameras (N, 4, 4); free of the world's frame and scale. NaN, of
    the direction, where the true cameras stand on one spot.
    """
    first, second = np.triu_indices(len(true), 1)
    found, wanted = (np.linalg.inv(poses)[first] @ poses[second] for poses in (estimated, true))
    return relative_errors(found, wanted)


def relative_errors(found: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``pose_errors`` of relative poses (P, 4, 4), second camera to first."""
    turn = found[:, :3, :3].swapaxes(1, 2) @ wanted[:, :3, :3]
    # From the chord: the arccosine is blind to small angles.
    chord = np.linalg.norm(turn - np.eye(3), axis=(1, 2)) / 8**0.5
    ways = [poses[:, :3, 3] for poses in (found, wanted)]
    lengths = [np.linalg.norm(way, axis=1, keepdims=True) for way in ways]
    units = [way / np.maximum(size, 1e-12) for way, size in zip(ways, lengths, strict=True)]
    apart = np.linalg.norm(units[0] - units[1], axis=1) / 2
    apart[lengths[1][:, 0] < 1e-6] = np.nan
    rotation, direction = (np.degrees(2 * np.arcsin(half.clip(0, 1))) for half in (chord, apart))
    return rotation, direction


def with_left_out(
    rotation: np.ndarray, direction: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of all pairs of ``count`` images, those that are missing as wrong as can be."""
    left_out = np.full(count * (count - 1) // 2 - len(rotation), WORST_DEGREES)
    return np.append(rotation, left_out), np.append(direction, left_out)


def accuracies(
    rotation: np.ndarray, direction: np.ndarray, limits: Sequence[int] = (5, 15)
) -> dict[str, float]:
    """``RRA@limit`` and ``RTA@limit``, shares below limits in degrees, and ``mAA30``.

    mAA30 is the mean over thresholds of 1 to 30 degrees of the share with both errors below. Pairs
    without a true direction (NaN) count in the rotation alone.
    """
    worse = np.fmax(rotation, direction)
    direction = direction[np.isfinite(direction)]
    within = [(worse < limit).mean() for limit in range(1, MAA_DEGREES + 1)]
    return {
        **{f"RRA@{limit}": float((rotation < limit).mean()) for limit in limits},
        **{f"RTA@{limit}": share(direction, limit) for limit in limits},
        "mAA30": float(np.mean(within)),
    }


def share(errors: np.ndarray, limit: float) -> float:
    """Of errors (n,) below a limit; NaN of none."""
    return float((errors < limit).mean()) if len(errors) else float("nan")


def focal_errors(estimated: Sequence[float] | Tensor, true: np.ndarray) -> np.ndarray:
    """(N,) relative errors."""
    return np.abs(np.asarray(estimated, dtype=float).reshape(-1) / true - 1)


def trajectory_error(centres: np.ndarray, true: np.ndarray) -> float:
    """Of camera centres (N, 3) after the best similarity, over the true ones' diameter."""
    given, wanted = torch.from_numpy(centres), torch.from_numpy(true)
    turn, shift, scale = roma.rigid_points_registration(given, wanted, compute_scaling=True)
    distance = (scale * given @ turn.T + shift - wanted).norm(dim=1)
    return float(distance.square().mean().sqrt() / torch.cdist(wanted, wanted).max())
