"""A painted plane, seen by small cameras, as a reconstruction."""

import cv2
import numpy as np

from dust3r.reconstruction import Reconstruction, Source

SIZE = (32, 24)
VIEWS = 9
INTRINSICS = np.array([[30.0, 0, 15.1], [0, 31.0, 12.3], [0, 0, 1]])
NORMAL = np.array([0.15, -0.1, -1.0]) / np.linalg.norm([0.15, -0.1, -1.0])
OFFSET = -3.0


def reconstruct(unit: float = 1.0, views: int = VIEWS, calibrated: bool = True) -> Reconstruction:
    """What an alignment without any error gives; lengths are times ``unit``.

    The right half of every image is the less certain.
    """
    poses = np.stack([pose(number) for number in range(views)])
    drawn = [draw(one) for one in poses]
    depths = tuple((unit * depth).astype(np.float32) for _, depth in drawn)
    doubts = np.where(np.arange(SIZE[0]) < SIZE[0] // 2, 0.01, 0.05).astype(np.float32)
    sigmas = tuple(doubts * depth for depth in depths)
    poses[:, :3, 3] *= unit
    return Reconstruction(
        sources=tuple(Source(f"room {n}.png", None, SIZE, np.eye(3)) for n in range(views)),
        images=tuple(image for image, _ in drawn),
        poses=poses,
        intrinsics=np.stack([INTRINSICS] * views),
        depthmaps=depths,
        confidences=tuple(1 / sigma for sigma in sigmas),
        valid=tuple(np.ones(depth.shape, bool) for depth in depths),
        deviations=sigmas,
        radii90=tuple(2 * sigma for sigma in sigmas) if calibrated else None,
    )


def pose(number: int) -> np.ndarray:
    """Camera-to-world (4, 4)."""
    # The world is not the first camera's, and no axis is like another.
    moved = np.eye(4)
    turn = np.array([0.04 * number - 0.2, 0.15 - 0.05 * number, 0.03 * number])
    moved[:3, :3] = cv2.Rodrigues(turn)[0]
    moved[:3, 3] = 0.15 * number - 0.5, 0.3 - 0.07 * number, 0.05 * number + 0.2
    return moved


def draw(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) float32 in [0, 1] and depth (H, W)."""
    u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(INTRINSICS).T @ pose[:3, :3].T
    depth = (OFFSET - NORMAL @ pose[:3, 3]) / (rays @ NORMAL)
    x, y, _ = np.moveaxis(pose[:3, 3] + rays * depth[..., None], -1, 0)
    waves = np.stack([np.sin(4 * x), np.sin(5 * y + 1), np.sin(3 * (x - y))], -1)
    return (0.5 + 0.4 * waves).astype(np.float32), depth
