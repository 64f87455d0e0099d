"""Three posed pictures of a slanted plane with a random texture, and its exact depth."""

from functools import cache

import cv2
import numpy as np
import torch

SIZE = 96, 128
CAMERA = np.array([[110.0, 0.0, 62.3], [0.0, 112.0, 49.1], [0.0, 0.0, 1.0]])
# Of n . X = 1 in the anchor's camera: from 1.3 to 2.6 m within the picture.
_NORMAL = np.array([0.22, -0.1, 0.55])
_TEXELS_A_METRE, _TEXELS = 110.0, 1024


def poses() -> np.ndarray:
    """(3, 4, 4) camera-to-world, the anchor not at the world's origin."""
    world = _motion([0.1, 0.7, -0.2], [3.0, -2.0, 5.0])
    return np.stack(
        [
            world,
            world @ _motion([0.01, 0.05, 0.0], [-0.13, 0.02, 0.01]),
            world @ _motion([0.0, -0.05, 0.02], [0.14, -0.03, 0.02]),
        ]
    )


def depth(to_view: np.ndarray | None = None) -> np.ndarray:
    """(H, W) of the plane in the camera that ``to_view`` (4, 4) takes the anchor's points to."""
    to_view = np.eye(4) if to_view is None else to_view
    normal = to_view[:3, :3] @ _NORMAL
    return (1 + normal @ to_view[:3, 3]) / (rays() @ normal)


def rays() -> np.ndarray:
    """(H, W, 3), z = 1."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(CAMERA).T


@cache
def sample() -> dict[str, object]:
    """As ``deltas.data.sequences.Sequences`` gives it."""
    cameras = poses()
    to_views = np.linalg.inv(cameras) @ cameras[0]
    depths = np.stack([depth(to_view) for to_view in to_views]).astype(np.float32)
    images = np.stack([_picture(to_view) for to_view in to_views])
    return {
        "img": torch.from_numpy(images / 127.5 - 1)[:, None].expand(-1, 3, -1, -1).float(),
        "depthmap": depths,
        "valid_mask": depths > 0,
        "camera_pose": cameras.astype(np.float32),
        "camera_intrinsics": np.tile(CAMERA, (3, 1, 1)).astype(np.float32),
    }


def _picture(to_view: np.ndarray) -> np.ndarray:
    """(H, W) grey values that the moved camera sees."""
    points = (rays() * depth(to_view)[..., None] - to_view[:3, 3]) @ to_view[:3, :3]
    x, y = (points[..., :2] * _TEXELS_A_METRE + _TEXELS / 2).astype(np.float32).transpose(2, 0, 1)
    return cv2.remap(_texture(), x, y, cv2.INTER_LINEAR)


@cache
def _texture() -> np.ndarray:
    """Blobs of several sizes, (N, N) float32 in 0 to 255."""
    chance = np.random.default_rng(0)
    layers = [
        cv2.GaussianBlur(chance.normal(size=(_TEXELS, _TEXELS)), None, sigma) * sigma
        for sigma in (2.0, 4.0, 8.0)
    ]
    total = sum(layers)
    return (128 + 45 * total / total.std()).clip(0, 255).astype(np.float32)


def _motion(turn: list[float], centre: list[float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array(turn))[0]
    pose[:3, 3] = centre
    return pose
