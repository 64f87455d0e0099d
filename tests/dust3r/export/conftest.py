"""A reconstruction of a known scene with real files: a painted plane seen by four cameras."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dust3r.reconstruction import Reconstruction, Source

NORMAL = np.array([0.15, -0.1, -1.0]) / np.linalg.norm([0.15, -0.1, -1.0])
OFFSET = -3.0


@dataclass(frozen=True)
class Shot:
    """One photograph: its upright size, how the network saw it, and how its file is stored."""

    name: str
    size: tuple[int, int]
    scale: float = 2.0
    crop: tuple[int, int] = (0, 0)
    orientation: int = 1
    stored: bool = True

    @property
    def network_size(self) -> tuple[int, int]:
        """(width, height) of the network's image: the middle of the scaled original."""
        return tuple(
            round(side / self.scale) - 2 * cut
            for side, cut in zip(self.size, self.crop, strict=True)
        )

    @property
    def to_original(self) -> np.ndarray:
        shift = [self.scale * (cut + 0.5) - 0.5 for cut in self.crop]
        return np.array([[self.scale, 0, shift[0]], [0, self.scale, shift[1]], [0, 0, 1]])

    @property
    def intrinsics(self) -> np.ndarray:
        """Of the upright original."""
        width, height = self.size
        focal = 0.9 * max(self.size)
        return np.array([[focal, 0, 0.48 * width], [0, 1.01 * focal, 0.53 * height], [0, 0, 1]])


SHOTS = (
    Shot("room 1.jpg", (192, 144)),
    Shot("кухня é.png", (240, 144), crop=(12, 0)),
    Shot("IMG_0003.jpg", (144, 192), orientation=6),
    Shot("given.png", (96, 72), scale=1.0, stored=False),
)


@pytest.fixture
def shots() -> tuple[Shot, ...]:
    return SHOTS


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Reconstruction]:
    """``build(names=..., deviations=True, shots=SHOTS)``: files under ``tmp_path/photos``."""

    def make(
        names: Sequence[str] | None = None, deviations: bool = True, shots: Sequence[Shot] = SHOTS
    ) -> Reconstruction:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        names = names or [shot.name for shot in shots]
        sources, images, poses, intrinsics, depths = [], [], [], [], []
        for number, (shot, name) in enumerate(zip(shots, names, strict=True)):
            pose = _pose(number)
            original, _ = _render(pose, shot.intrinsics, shot.size)
            path = folder / f"{number}{Path(shot.name).suffix}" if shot.stored else None
            if path:
                _store(path, original, shot.orientation)
            small = np.linalg.inv(shot.to_original) @ shot.intrinsics
            image, depth = _render(pose, small, shot.network_size)
            sources.append(Source(name, path, shot.size, shot.to_original))
            images.append((image / 255).astype(np.float32))
            poses.append(pose)
            intrinsics.append(small)
            depths.append(depth.astype(np.float32))
        return Reconstruction(
            sources=tuple(sources),
            images=tuple(images),
            poses=np.array(poses),
            intrinsics=np.array(intrinsics),
            depthmaps=tuple(depths),
            confidences=tuple(1 + depth for depth in depths),
            valid=tuple(np.ones(depth.shape, bool) for depth in depths),
            deviations=tuple(0.01 * depth**2 for depth in depths) if deviations else None,
        )

    return make


@pytest.fixture
def reconstruction(build: Callable[..., Reconstruction]) -> Reconstruction:
    return build()


def paint(world: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in [0, 255] of world points, smooth enough to compare across resolutions."""
    x, y = world[..., 0], world[..., 1]
    waves = np.stack([np.sin(2 * x), np.sin(2.5 * y + 1), np.sin(1.5 * (x - y))], -1)
    return 128 + 100 * waves


def _pose(number: int) -> np.ndarray:
    # The world is not the first camera's: exports may not take one for the other.
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.05 * number, 0.1 - 0.08 * number, 0.03 * number]))[0]
    pose[:3, 3] = 0.3 * number - 0.4, 0.2 - 0.1 * number, 0.15 * number
    return pose


def _render(
    pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T
    depth = (OFFSET - NORMAL @ pose[:3, 3]) / (rays @ NORMAL)
    world = pose[:3, 3] + rays * depth[..., None]
    return paint(world).round().astype(np.uint8), depth


def _store(path: Path, upright: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(upright)
    if orientation == 6:
        image = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 98} if path.suffix == ".jpg" else {}))
