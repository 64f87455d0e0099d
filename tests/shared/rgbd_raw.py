"""Files that raw recordings of the synthetic world have in common."""

from pathlib import Path

import cv2
import numpy as np
from world import World

SIZE = (160, 120)
CAMERA = np.array([[140.0, 0, 81.3], [0, 143.0, 57.2], [0, 0, 1]])
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_image(path: Path, pixels: np.ndarray) -> None:
    """RGB or grey pixels in the format of the suffix; JPEG at full quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    options = [] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 100]
    assert cv2.imwrite(str(path), shown, options)


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix, fmt="%.9f")


def steps(depth: np.ndarray, unit: float) -> np.ndarray:
    """Depth (H, W) in metres as uint16 of ``unit`` steps a metre."""
    return (unit * depth.astype(np.float64)).round().astype(np.uint16)


def wide(matrix: np.ndarray) -> np.ndarray:
    """A (3, 3) matrix as (4, 4)."""
    result = np.eye(4)
    result[:3, :3] = matrix
    return result


def rendered(
    world: World, number: int, camera: np.ndarray = CAMERA, size: tuple[int, int] = SIZE
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pose, RGB and depth of each of ``number`` neighbouring cameras."""
    return [(pose, *world.render(pose, camera, size)) for pose in world.poses(number)]


def spoil(path: Path) -> None:
    """Cut a file in the middle, as a download that broke off leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
