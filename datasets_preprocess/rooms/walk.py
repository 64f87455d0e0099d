"""Camera walks: smooth paths at eye height that look around a room."""

import numpy as np

MARGIN = 0.55
LOOK_CLEARANCE = 1.5
MAX_TURN = np.radians(16)
ATTEMPTS = 60


def make_walk(rng: np.random.Generator, size: np.ndarray, count: int) -> np.ndarray:
    """Camera-to-world poses (count, 4, 4) of a walk in an empty room of ``size`` (3,) metres.

    The room spans [-size/2, size/2] in x and y and [0, size] in z. Cameras stay 0.55 m off the
    walls at 1.2 to 1.8 m height and step 0.2 m or so between frames. Of several random walks it is
    the first that never turns by more than 16 degrees a frame nor looks at a wall nearer than
    1.5 m, or else the one that does so least.
    """
    best, best_blocked = None, np.inf
    for _ in range(ATTEMPTS):
        positions = _positions(rng, size, count)
        yaw, pitch, roll = _gaze(rng, positions, size)
        poses = camera_poses(positions, yaw, pitch, roll)
        blocked = np.mean(_wall_distance(poses, size) < LOOK_CLEARANCE)
        turn = np.abs(np.diff(np.unwrap(yaw))).max(initial=0.0)
        blocked += max(0.0, turn - MAX_TURN)
        if blocked < best_blocked:
            best, best_blocked = poses, blocked
        if blocked == 0:
            break
    return best


def _positions(rng: np.random.Generator, size: np.ndarray, count: int) -> np.ndarray:
    """A Lissajous figure, from nearly round to nearly straight, with small bumps."""
    reach = np.maximum(size[:2] / 2 - MARGIN, 0.05)
    radius = reach * rng.uniform(0.35, 0.95, 2)
    centre = (reach - radius) * rng.uniform(-1, 1, 2)
    step = rng.uniform(0.12, 0.3) / radius.mean()
    frame = np.arange(count)
    phase = rng.uniform(0, 2 * np.pi, 2)
    if rng.random() < 0.6:
        phase[1] = phase[0] + np.pi / 2 + rng.normal(0, 0.25)
    pace = rng.choice([-1, 1]) * step * np.array([1, rng.uniform(0.8, 1.25)])
    height = rng.uniform(1.3, 1.7) + 0.08 * np.sin(
        frame * rng.uniform(0.1, 0.5) + rng.uniform(0, 6)
    )
    horizontal = centre + radius * np.sin(phase + pace * frame[:, None])
    return np.column_stack([horizontal, np.minimum(height, size[2] - 0.4)])


def _gaze(
    rng: np.random.Generator, positions: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Yaw, pitch (negative is down) and roll of each frame, radians (n,)."""
    frame = np.arange(len(positions))
    if rng.random() < 0.5:
        target = rng.uniform(-0.3, 0.3, 2) * size[:2]
        drift = rng.uniform(0, 0.4) * np.stack(
            [np.sin(0.15 * frame + rng.uniform(0, 6)), np.cos(0.15 * frame)], axis=1
        )
        towards = target + drift - positions[:, :2]
        yaw = np.unwrap(np.arctan2(towards[:, 1], towards[:, 0]))
    else:
        yaw = rng.uniform(0, 2 * np.pi) + rng.normal(0, np.radians(7)) * frame
    swing = np.radians(rng.uniform(0, 30))
    yaw = yaw + swing * np.sin(rng.uniform(0.1, 0.4) * frame + rng.uniform(0, 6))
    pitch = np.radians(rng.uniform(-26, -8)) + np.radians(rng.uniform(1, 8)) * np.sin(
        rng.uniform(0.1, 0.5) * frame + rng.uniform(0, 6)
    )
    roll = np.radians(rng.uniform(0, 2)) * np.sin(0.3 * frame + rng.uniform(0, 6))
    return yaw, pitch, roll


def camera_poses(
    positions: np.ndarray, yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray
) -> np.ndarray:
    """Camera-to-world poses (n, 4, 4) at ``positions`` (n, 3), z up; angles (n,) in radians.

    ``yaw`` is the heading from the x axis on, ``pitch`` negative downwards.
    """
    forward = np.stack(
        [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], axis=1
    )
    level_right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=1)
    level_down = np.cross(forward, level_right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, 0] = c * level_right + s * level_down
    poses[:, :3, 1] = c * level_down - s * level_right
    poses[:, :3, 2] = forward
    poses[:, :3, 3] = positions
    return poses


def _wall_distance(poses: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Horizontal metres (n,) from each camera to the wall it looks at."""
    heading = poses[:, :2, 2] / np.linalg.norm(poses[:, :2, 2], axis=1, keepdims=True)
    heading = np.where(heading == 0, 1e-9, heading)
    ahead = (np.sign(heading) * size[:2] / 2 - poses[:, :2, 3]) / heading
    return ahead.min(axis=1)
